# SPDX-License-Identifier: Apache-2.0
"""How far the sampler's log-probabilities are from the trainer's, and what corrects it."""

from __future__ import annotations

import torch
from torch import Tensor

import rlkern
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.learning import MaskedCorrection


def correction(settings: Settings, rows: Rows) -> Tensor | None:
    """Returns the factor (B, T) of the policy loss of each token; None if there is none."""
    asked = settings.correction
    if asked is None or rows.old_logprob is None:
        return None
    return rlkern.rollout_correction(
        rows.old_logprob,
        rows.rollout_logprob,
        rows.mask,
        kind=asked.kind,
        low=asked.low if isinstance(asked, MaskedCorrection) else 0.0,
        high=asked.high,
    )


def mismatch_metrics(rows: Rows, factor: Tensor | None = None) -> dict[str, float]:
    """Returns |log π_old − log μ| over the counted tokens and the factors of the correction, if
    there is one, by the names of TRL, and rlkern.off_policy_metrics by those of verl; nothing if
    the trainer did not score the rows.
    """
    if rows.old_logprob is None or not rows.mask.any():
        return {}
    difference = (rows.old_logprob - rows.rollout_logprob)[rows.mask].abs()
    values = {
        "sampling/sampling_logp_difference/mean": difference.mean().item(),
        "sampling/sampling_logp_difference/max": difference.max().item(),
    }
    if factor is not None:
        counted = factor[rows.mask]
        for name, reduce in (("min", torch.min), ("mean", torch.mean), ("max", torch.max)):
            values[f"sampling/importance_sampling_ratio/{name}"] = reduce(counted).item()
    distance = rlkern.off_policy_metrics(rows.old_logprob, rows.rollout_logprob, rows.mask)
    numbers = torch.stack(list(distance.values())).tolist()
    values.update({f"rollout_corr/{k}": x for k, x in zip(distance, numbers, strict=True)})
    return values
