# SPDX-License-Identifier: Apache-2.0
"""Which metrics of rlkern.trainer.metrics to watch in a run of an algorithm."""

from __future__ import annotations

from collections.abc import Callable

from rlkern.algorithms import Algorithm
from rlkern.compare.words import Declared, clips, has_ratio, needs_groups, needs_value
from rlkern.trainer.metrics import METRICS, Metric


def _clips_by(*levels: str) -> Callable[[Declared], bool]:
    return lambda one: clips(one) and isinstance(one, Algorithm) and one.level in levels


# By Metric.watch.
AUDIENCES: dict[str, Callable[[Declared], bool]] = {
    "": lambda one: False,
    "every": lambda one: True,
    "online": lambda one: one.online,
    "pairs": lambda one: one.learns_from == "pairs",
    "groups": needs_groups,
    "ratio": lambda one: has_ratio(one) and needs_groups(one),
    "value": needs_value,
    "kl in the loss": lambda one: one.online and bool(one.defaults.get("kl_coef")),
    "kl in the reward": lambda one: one.kl_in_reward,
    "dynamic sampling": lambda one: one.sampling == "dynamic",
    "duplicated groups": lambda one: one.sampling == "duplicate",
    "clip of tokens": _clips_by("token"),
    "clip of answers": _clips_by("sequence", "sequence_token", "clipped_sequence", "product"),
}


def to_watch(declared: Declared) -> list[Metric]:
    """Returns the metrics that say whether a run of this algorithm is healthy.

    >>> from rlkern.algorithms import OfflineAlgorithm
    >>> [m.key for m in to_watch(OfflineAlgorithm("x", "p", "answers", "policy_loss"))]
    ['eval/accuracy', 'grad_norm', 'skipped_updates']
    """
    return [metric for metric in METRICS if AUDIENCES[metric.watch](declared)]
