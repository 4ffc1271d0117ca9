# SPDX-License-Identifier: Apache-2.0
"""Reads and merges the metrics vector of a loss."""

import torch
from torch import Tensor

from rlkern.ops import check
from rlkern.reference.token_objective import METRICS, SUMMED_METRICS


def metrics_dict(metrics: Tensor) -> dict[str, float]:
    """Returns the metrics by name, means over the counted tokens. Reads the vector: synchronises.

    logprob, entropy; kl to the reference by the loss's estimator, and by k1, k2, k3; old_kl (k3 to
    the old policy); ratio/{mean,min,max}, as the gate saw it; the share of tokens a clip holds,
    clip_ratio/{low,high,region}_mean; correction, the mean factor of the rollout correction.

    >>> values = [2.0, -3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 1.0, 0.0, 2.0, 0.9, 1.1]
    >>> metrics_dict(torch.tensor(values))["logprob"]
    -1.5
    """
    if metrics.shape != (len(METRICS),):
        got = check.describe(metrics)
        raise ValueError(f"metrics_dict: metrics must be ({len(METRICS)},), got {got}")
    values = dict(zip(METRICS, metrics.tolist(), strict=True))
    count = values["count"]
    if count == 0:
        values.update(ratio_min=0.0, ratio_max=0.0)
    mean = {name: values[name] / max(count, 1.0) for name in SUMMED_METRICS}
    same = ("logprob", "entropy", "kl", "kl_k1", "kl_k2", "kl_k3", "old_kl", "correction")
    return {
        "num_tokens": count,
        **{name: mean[name] for name in same},
        "ratio/mean": mean["ratio"],
        "ratio/min": values["ratio_min"],
        "ratio/max": values["ratio_max"],
        "clip_ratio/low_mean": mean["clip_low"],
        "clip_ratio/high_mean": mean["clip_high"],
        "clip_ratio/region_mean": mean["clip_low"] + mean["clip_high"],
    }


def merge_metrics(metrics: list[Tensor]) -> Tensor:
    """Returns the metrics vector of several batches together.

    >>> a = torch.tensor([1.0, -1.0, *[0.0] * 10, 0.5, 1.0])
    >>> merge_metrics([a, a])[:2].tolist()
    [2.0, -2.0]
    """
    if not metrics:
        raise ValueError("merge_metrics: metrics must be a list of vectors, got an empty list")
    stacked = torch.stack(metrics)
    sums = stacked[:, :-2].sum(0)
    return torch.cat([sums, stacked[:, -2:-1].amin(0), stacked[:, -1:].amax(0)])
