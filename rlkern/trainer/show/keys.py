# SPDX-License-Identifier: Apache-2.0
"""What the keys of metrics.jsonl are, by the table of metrics."""

from __future__ import annotations

from collections.abc import Iterable

from rlkern.trainer.metrics import METRICS

# The folder of a run's rollouts, one file for each step that wrote one.
COMPLETIONS = "completions.parquet"


def reward_functions(keys: Iterable[str]) -> list[str]:
    """Returns the names of the reward functions that a run logs, in their order.

    >>> reward_functions(["reward", "rewards/task/mean", "rewards/task/std"])
    ['task']
    """
    pattern = next(each for each in METRICS if each.key == "rewards/{function}/mean").pattern
    return [found[1] for key in keys if (found := pattern.fullmatch(key))]
