# SPDX-License-Identifier: Apache-2.0
"""What the keys of metrics.jsonl are, by the table of metrics."""

from __future__ import annotations

from collections.abc import Iterable

from rlkern.trainer.metrics import METRICS, Metric

# The folder of a run's rollouts, one file for each step that wrote one.
COMPLETIONS = "completions.parquet"


def is_time(key: str) -> bool:
    """Returns True for a metric that two equal runs may differ in: a time."""
    return key.startswith("time/") or key in ("step_time", "seconds")


def of_key(key: str) -> Metric | None:
    """Returns the metric that a key is, None for a key that is not in the table.

    >>> found = of_key("rewards/task/mean")
    >>> found and found.meaning
    'mean reward by one function'
    """
    return next((each for each in METRICS if each.pattern.fullmatch(key)), None)


def reward_functions(keys: Iterable[str]) -> list[str]:
    """Returns the names of the reward functions that a run logs, in their order.

    >>> reward_functions(["reward", "rewards/task/mean", "rewards/task/std"])
    ['task']
    """
    pattern = next(each for each in METRICS if each.key == "rewards/{function}/mean").pattern
    return [found[1] for key in keys if (found := pattern.fullmatch(key))]
