# SPDX-License-Identifier: Apache-2.0
"""Runs group_advantage on as many rewards as a case has logits in a row."""

import torch

import rlkern
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, upstream


def run_group_advantage(case: Case, batch: Batch) -> Outputs:
    """Returns every kind of group advantage of rewards in ragged groups, one of them NaN."""
    n = case.V if case.V < 1000 else 1000
    reward = upstream(batch.ref_logprob.new_empty(n), 1)
    reward[n // 2] = torch.nan
    group = (torch.arange(n, device=reward.device) * 7919 % 101).sqrt().long()
    kinds = ("normalized", "centered", "leave_one_out")
    return {kind: rlkern.group_advantage(reward, group, kind=kind) for kind in kinds}


RUNS = {"group_advantage": run_group_advantage}
VECTOR_OPERATIONS = tuple(RUNS)
