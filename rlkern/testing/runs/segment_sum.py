# SPDX-License-Identifier: Apache-2.0
"""Runs segment_sum on a case's sequences, padded and packed."""

import torch

from rlkern.ops.sequence_logprob import segment_sum
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, upstream


def run_segment_sum(case: Case, batch: Batch) -> Outputs:
    """Returns sums, counts and gradient of the reference's log-probabilities."""
    x = batch.ref_logprob.detach().clone().requires_grad_()
    total, count = segment_sum("run", x, batch.mask, None)
    total.backward(upstream(total, 1))
    return {"sum": total, "count": count, "grad_x": x.grad}  # type: ignore[dict-item]


def run_packed(case: Case, batch: Batch) -> Outputs:
    """Returns the same for pieces of uneven length of one long vector, an empty one among them."""
    flat = batch.ref_logprob.detach().reshape(-1)
    x = flat.clone().requires_grad_()
    n = x.numel()
    offset = torch.tensor([0, n // 3, n // 3, n], device=x.device)
    total, count = segment_sum("run", x, batch.mask.reshape(-1), offset)
    total.backward(upstream(total, 1))
    return {"sum": total, "count": count, "grad_x": x.grad}  # type: ignore[dict-item]


RUNS = {"segment_sum": run_segment_sum, "segment_sum (packed)": run_packed}
VECTOR_OPERATIONS = tuple(RUNS)
