# SPDX-License-Identifier: Apache-2.0
"""What a run of several processes may differ in from the run of one."""

import os

import pytest
import torch
from trainer_helpers import is_time

from rlkern.trainer import loop

# What an optimizer makes of gradients that were added in another order, after a few steps.
ROUNDING = {"rel": 2e-3, "abs": 2e-5}
EXACT = (
    "reward", "completions/", "eval/accuracy", "eval/pass@", "num_tokens", "sampling/generated",
    "sampling/groups",
)  # fmt: skip
# Rewards that a model gives to the answers of pairs, unlike a verifier's.
OF_A_MODEL = ("rewards/chosen", "rewards/rejected", "rewards/margins")


def assert_same_curve(lines, others, steps, but=()):
    """Raises unless two runs drew the same tokens, for the same rewards, and learned the same.

    but  what the names begin with of metrics that are left out
    """
    assert len(lines) == len(others) == 1 + steps
    for line, other in zip(lines, others):
        assert line.keys() == other.keys()
        for key, number in line.items():
            if key.startswith(EXACT) and key not in OF_A_MODEL:
                assert number == other[key], (line["step"], key)
            elif not is_time(key) and not key.startswith(but):
                assert number == pytest.approx(other[key], **ROUNDING, nan_ok=True), key


def as_one_of_two(rank: int) -> None:
    """Makes this process one of two that torchrun started, which draws no plots."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.use_deterministic_algorithms(False)
    loop.plot_curves = no_plot


def no_plot(*_, **__) -> None:
    """Draws nothing: that takes longer than the steps."""
