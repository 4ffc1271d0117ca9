# SPDX-License-Identifier: Apache-2.0
"""Runs reverse_scan on vectors as long as a case's vocabulary."""

import torch

import rlkern
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, upstream


def run_reverse_scan(case: Case, batch: Batch) -> Outputs:
    """Returns the scan of the batch's vectors, as long as its vocabulary, and both gradients."""
    length = min(case.V, 1500)
    bias = upstream(batch.ref_logprob.new_empty(case.B, length), 1).requires_grad_()
    decay = (upstream(bias, 2).sigmoid() * 1.02).detach()
    decay[:, :: max(length // 3, 1)] = 0
    decay.requires_grad_()
    x = rlkern.reverse_scan(bias, decay)
    x.backward(upstream(x, 3))
    bounds = torch.arange(case.B + 1, device=x.device) * length
    packed = rlkern.reverse_scan(bias.flatten(), decay.flatten(), cu_seqlens=bounds)
    return {"packed": packed, "x": x, "grad_bias": bias.grad, "grad_decay": decay.grad}  # type: ignore[dict-item]


RUNS = {"reverse_scan": run_reverse_scan}
VECTOR_OPERATIONS = tuple(RUNS)
