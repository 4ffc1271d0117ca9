# SPDX-License-Identifier: Apache-2.0
"""prime-rl's custom loss: every algorithm of rlkern by its name. Not run inside prime-rl.

[trainer.loss]
type = "custom"
import_path = "rlkern.integrations.prime_rl.loss"
kwargs = {algorithm = "gspo", clip_low = 3e-4, clip_high = 4e-4}
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import rlkern
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.integrations._served import reason


class LossOutputs(NamedTuple):
    """What prime-rl reads of its own class of this name."""

    loss: Tensor
    metrics: dict[str, Tensor]


def loss(inputs: Any, *, algorithm: str = "prime_ipo", **coefficients: Any) -> LossOutputs:
    """Returns the summed loss of one sequence, which prime-rl divides by its count of tokens.

    inputs is prime-rl's LossInputs: trainer_logprobs, inference_logprobs (π_old here), ref_logprobs
    or None, advantages, loss_mask, loss_weights or None, all (seq,). Raises ValueError for an
    algorithm that needs more than these.
    """
    if (why := reason(find_algorithm(algorithm), "prime-rl")) is not None:
        raise ValueError(f"{algorithm} is no loss of prime-rl: {why}")
    mask, weight = inputs.loss_mask.bool(), inputs.loss_weights
    weight = mask if weight is None else torch.where(mask, weight, 0.0)
    out = rlkern.token_objective(
        inputs.trainer_logprobs.float()[None],
        inputs.advantages.float()[None],
        mask[None],
        old_logprob=inputs.inference_logprobs.float()[None],
        ref_logprob=None if inputs.ref_logprobs is None else inputs.ref_logprobs.float()[None],
        weight=weight.float()[None],
        algorithm=algorithm,
        **coefficients,
    )
    metrics = rlkern.metrics_dict(out.metrics)
    kept = ("old_kl", "ratio/mean", "clip_ratio/region_mean")
    return LossOutputs(out.loss, {name: out.loss.new_tensor(metrics[name]) for name in kept})
