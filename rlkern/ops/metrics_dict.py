# SPDX-License-Identifier: Apache-2.0
"""Reads and merges the metrics vectors of the losses."""

import torch
from torch import Tensor

from rlkern.backends.eager.preference_loss import PREFERENCE_METRICS
from rlkern.backends.eager.token_objective import METRICS, SUMMED_METRICS
from rlkern.backends.eager.value_loss import VALUE_METRICS
from rlkern.ops import _check as check


def metrics_dict(metrics: Tensor) -> dict[str, float]:
    """Returns the metrics by name, means over the counted tokens. Reads the vector: synchronises.

    logprob, entropy; kl to the reference by the loss's estimator, and by k1, k2, k3, estimates of
    KL(π‖π_ref) as if π had drawn the tokens; old_kl = exp(d) − 1 − d with d = log π − log π_old,
    k3's estimate of KL(π_old‖π), whose tokens they are, and old_kl_k1 = −d, k1's, which has a sign;
    ratio/{mean,min,max}, as the gate saw it; the share of tokens a clip holds,
    clip_ratio/{low,high,region}_mean; correction, the mean factor of the rollout correction.

    >>> values = [2.0, -3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 1.0, 0.0, 2.0, 0.9, 1.1]
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
    same = ("logprob", "entropy", "kl", "kl_k1", "kl_k2", "kl_k3", "old_kl", "old_kl_k1")
    return {
        "num_tokens": count,
        **{name: mean[name] for name in same},
        "correction": mean["correction"],
        "ratio/mean": mean["ratio"],
        "ratio/min": values["ratio_min"],
        "ratio/max": values["ratio_max"],
        "clip_ratio/low_mean": mean["clip_low"],
        "clip_ratio/high_mean": mean["clip_high"],
        "clip_ratio/region_mean": mean["clip_low"] + mean["clip_high"],
    }


def merge_metrics(metrics: list[Tensor]) -> Tensor:
    """Returns the metrics vector of several batches together.

    >>> a = torch.tensor([1.0, -1.0, *[0.0] * 11, 0.5, 1.0])
    >>> merge_metrics([a, a])[:2].tolist()
    [2.0, -2.0]
    """
    if not metrics:
        raise ValueError("merge_metrics: metrics must be a list of vectors, got an empty list")
    stacked = torch.stack(metrics)
    sums = stacked[:, :-2].sum(0)
    return torch.cat([sums, stacked[:, -2:-1].amin(0), stacked[:, -1:].amax(0)])


def value_metrics_dict(metrics: Tensor) -> dict[str, float]:
    """Returns the metrics of value_loss or td_loss by name. Reads the vector: synchronises.

    count, value_mean, target_mean, explained_variance = 1 − Var(R − V) / Var(R), and the share of
    elements on which the clip decides, clip_fraction. The vectors hold sums: those of micro-batches
    and of ranks add up. Where all targets are equal explained_variance is NaN (as in
    Stable-Baselines3 and CleanRL).

    >>> from rlkern import value_loss
    >>> value, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 6.0])
    >>> out = value_loss(value, None, target, torch.ones(3).bool(), kind="squared")
    >>> round(value_metrics_dict(out.metrics)["explained_variance"], 4)  # 1 − (6/3) / (14/3)
    0.5714
    """
    if metrics.shape != (len(VALUE_METRICS),):
        got = check.describe(metrics)
        raise ValueError(f"value_metrics_dict: metrics must be ({len(VALUE_METRICS)},), got {got}")
    count, *sums = metrics.tolist()
    mean = dict(zip(VALUE_METRICS[1:], (x / max(count, 1.0) for x in sums), strict=True))
    residual = mean["error_square"] - mean["error"] ** 2
    total = mean["target_square"] - mean["target"] ** 2
    return {
        "count": count,
        "value_mean": mean["value"],
        "target_mean": mean["target"],
        "explained_variance": 1.0 - residual / total if total > 0 else float("nan"),
        "clip_fraction": mean["clipped"],
    }


def preference_metrics_dict(metrics: Tensor) -> dict[str, float]:
    """Returns the metrics of a preference loss by name. Reads the vector: synchronises.

    rewards/{chosen,rejected,margins,accuracies} and logps/{chosen,rejected} as TRL names them, and
    count. The vectors hold sums: those of micro-batches and of ranks add up.

    >>> vector = torch.tensor([2.0, 2.0, 2.0, 3.0, 1.0, 1.0, -8.0, -9.0])
    >>> found = preference_metrics_dict(vector)
    >>> found["rewards/margins"], found["rewards/accuracies"], found["logps/chosen"]
    (1.0, 0.5, -4.0)
    """
    if metrics.shape != (len(PREFERENCE_METRICS),):
        expected, got = len(PREFERENCE_METRICS), check.describe(metrics)
        raise ValueError(f"preference_metrics_dict: metrics must be ({expected},), got {got}")
    m = dict(zip(PREFERENCE_METRICS, metrics.tolist(), strict=True))
    chosen, rejected, judged = (max(m[name], 1.0) for name in ("chosen", "rejected", "judged"))
    better, worse = m["chosen_reward"] / chosen, m["rejected_reward"] / rejected
    return {
        "count": m["judged"],
        "rewards/chosen": better,
        "rewards/rejected": worse,
        "rewards/margins": better - worse,
        "rewards/accuracies": m["right"] / judged,
        "logps/chosen": m["chosen_logprob"] / chosen,
        "logps/rejected": m["rejected_logprob"] / rejected,
    }
