# SPDX-License-Identifier: Apache-2.0
"""How far the sampler's log-probabilities are from the trainer's, and what corrects it."""

from __future__ import annotations

import torch
from torch import Tensor

import rlkern
from rlkern.trainer.config import Config
from rlkern.trainer.rollout.data import Rollout


def correction(config: Config, old_logprob: Tensor | None, rollout: Rollout) -> Tensor | None:
    """Returns what multiplies the policy loss of each token (B, T); None where nothing does.

    old_logprob is the trainer's score of what was sampled, by the policy that sampled it.
    """
    if config.rollout_correction == "none" or old_logprob is None:
        return None
    return rlkern.rollout_correction(
        old_logprob,
        rollout.rollout_logprob,
        rollout.mask,
        kind=config.rollout_correction,
        low=config.correction_low,
        high=config.correction_high,
    )


def mismatch_metrics(
    config: Config, old_logprob: Tensor | None, rollout: Rollout
) -> dict[str, float]:
    """Returns |log π_old − log μ| over the counted tokens and what the correction multiplies by, by
    the names of TRL; nothing where the trainer did not score the rollout.
    """
    if old_logprob is None or not rollout.mask.any():
        return {}
    difference = (old_logprob - rollout.rollout_logprob)[rollout.mask].abs()
    values = {
        "sampling/sampling_logp_difference/mean": difference.mean().item(),
        "sampling/sampling_logp_difference/max": difference.max().item(),
    }
    factor = correction(config, old_logprob, rollout)
    if factor is not None:
        counted = factor[rollout.mask]
        for name, reduce in (("min", torch.min), ("mean", torch.mean), ("max", torch.max)):
            values[f"sampling/importance_sampling_ratio/{name}"] = reduce(counted).item()
    return values
