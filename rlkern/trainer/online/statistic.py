# SPDX-License-Identifier: Apache-2.0
"""The factor of each token that the algorithm's statistic of the whole optimizer step decides."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.trainer.models.policy import token_scores, without_gradient
from rlkern.trainer.parts import Parts
from rlkern.trainer.rows import Rows


def with_statistic(parts: Parts, rows: Rows) -> Rows:
    """Returns the rows of an optimizer step with the statistic's factor in their correction, or as
    their penalty.

    The policy scores them as it is before the step, each process its share; the statistic itself is
    of all rows in every process, whatever they are split into afterwards.
    """
    settings = parts.settings
    declared = settings.declared
    coefficients: dict[str, Any] = {k: settings.coefficients[k] for k in declared.statistic_coef}
    assert rows.advantage is not None

    def scored(part: Rows) -> Tensor:
        found = token_scores(parts.policy, part, settings)
        return torch.stack([found.logprob, found.entropy], -1)

    pieces = settings.batch.micro_batches
    logprob, entropy = without_gradient(scored, rows, world=parts.world, parts=pieces).unbind(-1)
    factor = rlkern.statistics.factor(
        logprob,
        logprob if rows.anchor_logprob is None else rows.anchor_logprob,
        rows.advantage,
        rows.mask,
        algorithm=declared.name,
        entropy=entropy,
        generator=parts.generator,
        **coefficients,
    )
    if declared.statistic_row == "penalty":
        return dataclasses.replace(rows, penalty=factor)
    correction = factor if rows.correction is None else rows.correction * factor
    return dataclasses.replace(rows, correction=correction)
