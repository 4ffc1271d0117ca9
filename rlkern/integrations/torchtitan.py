# SPDX-License-Identifier: Apache-2.0
"""torchtitan's RL loss: every algorithm of rlkern that looks at tokens. Not run inside torchtitan.

    class Cispo(BaseLoss):
        @dataclass(kw_only=True, slots=True)
        class Config(BaseLoss.Config):
            pass

        def __init__(self, config, *, compile_config=None):
            self.fn = policy_loss("cispo")

        def __call__(self, *args, **kwargs):
            return self.fn(*args, **kwargs)

and `PolicyTrainer.Config(loss=Cispo.Config())`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.aggregate import token_weight
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.integrations import _served


def policy_loss(algorithm: str, **coefficients: Any) -> Callable[..., tuple[Tensor, dict]]:
    """Returns a loss of the signature of torchtitan's DAPOLoss, in one pass over the logits.

    Tokens whose generator_logprobs are not finite are dropped, as DAPOLoss does. Raises ValueError
    for an algorithm or a coefficient that is not one, and for an algorithm of sequences: the tokens
    of a call are a packed row, or a part of one, and nothing says where a sequence begins.
    """
    level = coefficients.get("level", find_algorithm(algorithm).level)
    if level != "token":
        raise ValueError(
            "policy_loss: algorithm must judge each token by itself, since torchtitan does not say"
            f" where a sequence begins, got {algorithm!r} of level {level!r}"
        )
    _served.check(algorithm, coefficients, "torchtitan", scores=("entropy",))

    def loss(
        logits: Tensor,
        labels: Tensor,
        global_valid_tokens: float | None = None,
        *,
        generator_logprobs: Tensor,
        advantages: Tensor,
        loss_mask: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mask = loss_mask & generator_logprobs.isfinite()
        mask = mask[None]
        if global_valid_tokens is None:
            weight = token_weight(mask, "token_sum")
        else:
            weight = token_weight(mask, "token_mean", count=max(global_valid_tokens, 1))
        out = rlkern.policy_loss(
            logits[None], labels.clamp(min=0)[None], advantages[None].float(), mask,
            old_logprob=torch.where(mask, generator_logprobs, 0.0), weight=weight,
            algorithm=algorithm, **coefficients,
        )  # fmt: skip
        return out.loss, {"loss/mean": out.loss.detach()}

    return loss
