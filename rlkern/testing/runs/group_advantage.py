# SPDX-License-Identifier: Apache-2.0
"""Runs group_advantage on as many rewards as a case has logits in a row."""

import torch

import rlkern
from rlkern.backends.eager.group_advantage import KINDS
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, upstream


def run_group_advantage(case: Case, batch: Batch) -> Outputs:
    """Returns every kind of group advantage of rewards in ragged groups, one of them NaN."""
    n = case.V if case.V < 1000 else 1000
    index = torch.arange(n, device=batch.ref_logprob.device)
    group = (index * 7919 % 101).sqrt().long()
    # Positive: a mean near 0, by which max_rl divides, would magnify the rounding of the mean.
    reward = upstream(batch.ref_logprob.new_empty(n), 1).exp()
    reward[n // 2] = torch.nan
    lengths = {"length_weighted": index * 31 % 17}
    return {
        kind: rlkern.group_advantage(reward, group, kind=kind, length=lengths.get(kind))
        for kind in KINDS
    }


RUNS = {"group_advantage": run_group_advantage}
VECTOR_OPERATIONS = tuple(RUNS)
