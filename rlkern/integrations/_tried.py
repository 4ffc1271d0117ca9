# SPDX-License-Identifier: Apache-2.0
"""Tries an algorithm and its coefficients on one token, before a trainer spends a step on them."""

from typing import Any

import torch

import rlkern


def tried(algorithm: str, coefficients: dict[str, Any]) -> None:
    """Raises what rlkern.token_objective does for an algorithm or a coefficient it cannot take."""
    zero = torch.zeros(1, 1)
    rlkern.token_objective(
        zero, zero, zero == 0, entropy=zero, old_logprob=zero, ref_logprob=zero,
        algorithm=algorithm, **coefficients,
    )  # fmt: skip
