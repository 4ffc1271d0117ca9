# SPDX-License-Identifier: Apache-2.0
"""Runs every kind of value_loss on a case's rows."""

import torch

from rlkern.backends.eager.value_loss import VALUE_KINDS
from rlkern.ops.value_loss import value_loss
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, upstream


def run_value_loss(case: Case, batch: Batch) -> Outputs:
    """Returns loss, metrics and gradient of each kind, garbage wherever the mask is False."""
    outputs: Outputs = {}
    rows = [upstream(batch.ref_logprob, seed) for seed in (1, 2, 3)]
    value, old, target = (torch.where(batch.mask, 2 * x, torch.nan) for x in rows)
    for kind in VALUE_KINDS:
        leaf = value.detach().clone().requires_grad_()
        clips = VALUE_KINDS[kind].rule != "free"
        out = value_loss(
            leaf, old, target, batch.mask, kind=kind, clip=0.5 if clips else None, delta=0.7
        )
        out.loss.backward()
        metrics = out.metrics.to(out.loss.dtype)  # of which they are made
        found = {"loss": out.loss, "metrics": metrics, "grad_value": leaf.grad}
        outputs |= {f"{name} {kind}": x for name, x in found.items()}  # type: ignore[misc]
    return outputs


RUNS = {"value_loss": run_value_loss}
VECTOR_OPERATIONS = tuple(RUNS)
