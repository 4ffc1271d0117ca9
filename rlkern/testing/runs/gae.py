# SPDX-License-Identifier: Apache-2.0
"""Runs gae on rows as long as a case's vocabulary, with holes in their masks, padded and packed."""

import torch

import rlkern
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, upstream


def run_gae(case: Case, batch: Batch) -> Outputs:
    """Returns advantages and targets: padded, packed with a λ per sequence, and whitened."""
    length = min(case.V, 1100)
    reward = upstream(batch.ref_logprob.new_empty(case.B, length), 1)
    value, bootstrap = upstream(reward, 2), upstream(reward.new_empty(case.B), 3)
    mask = upstream(reward, 4) > -0.5
    gae_lambda = upstream(bootstrap, 5).sigmoid()
    bounds = torch.arange(case.B + 1, device=reward.device) * length
    padded = rlkern.gae(reward, value, mask, discount=0.99, bootstrap=bootstrap)
    packed = rlkern.gae(
        reward.flatten(), value.flatten(), mask.flatten(), gae_lambda=gae_lambda, cu_seqlens=bounds
    )
    whitened = rlkern.gae(reward, value, mask, whiten=True)
    population = rlkern.gae(reward, value, mask, whiten=True, ddof=0)
    return {
        "advantage": padded.advantage,
        "target": padded.target,
        "packed": packed.advantage,
        "whitened": whitened.advantage,
        "population": population.advantage,
    }


RUNS = {"gae": run_gae}
VECTOR_OPERATIONS = tuple(RUNS)
