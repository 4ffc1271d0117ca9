# SPDX-License-Identifier: Apache-2.0
"""Runs token_logprob on a case."""

import torch

import rlkern
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, leaf_of, upstream


def run_token_logprob(case: Case, batch: Batch, inplace: bool = False) -> Outputs:
    """Returns the results of token_logprob and the gradient of a random combination of them."""
    leaf = leaf_of(batch.logits)
    logits = leaf * 1 if inplace else leaf
    out = rlkern.token_logprob(
        logits, batch.token, mask=batch.mask, inplace=inplace, **batch.softmax
    )
    wanted = [x for x in out if x.requires_grad]
    torch.autograd.backward(wanted, [upstream(x, i) for i, x in enumerate(wanted)])
    return {**out._asdict(), "grad_logits": leaf.grad}  # type: ignore[dict-item]


@torch.no_grad()
def run_companions(case: Case, batch: Batch) -> Outputs:
    """Returns the results of token_logprob with companions, all in floating point."""
    out = rlkern.token_logprob(
        batch.logits, batch.token, mask=batch.mask, companions=True, **batch.softmax
    )
    return {name: x.to(out.logprob.dtype) for name, x in out._asdict().items()}


RUNS = {
    "token_logprob": run_token_logprob,
    "token_logprob_companions": run_companions,
    "token_logprob (in place)": lambda case, batch: run_token_logprob(case, batch, inplace=True),
}
