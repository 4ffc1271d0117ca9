# SPDX-License-Identifier: Apache-2.0
"""Runs the returns that are formulas over the scan."""

from typing import Any

import rlkern
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, upstream


def run_returns(case: Case, batch: Batch) -> Outputs:
    """Returns what each makes of the same rows, with holes in their masks."""
    reward = upstream(batch.ref_logprob.new_empty(case.B, min(case.V, 300)), 1)
    value, ratio = upstream(reward, 2), upstream(reward, 3)
    mask, bootstrap = upstream(reward, 4) > -0.5, upstream(reward.new_empty(case.B), 5)
    options: dict[str, Any] = {"discount": 0.97, "bootstrap": bootstrap}
    return {
        "discounted": rlkern.discounted_return(reward, mask, **options),
        "n_step": rlkern.n_step_return(reward, value, mask, n=5, **options),
        "lambda": rlkern.lambda_return(reward, value, mask, **options),
        "vtrace": rlkern.vtrace(ratio, reward, value, mask, **options).target,
        "retrace": rlkern.retrace(ratio, reward, value, value, mask, gae_lambda=0.9, **options),
    }


RUNS = {"returns": run_returns}
VECTOR_OPERATIONS = tuple(RUNS)
