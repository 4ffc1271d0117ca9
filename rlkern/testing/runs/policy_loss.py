# SPDX-License-Identifier: Apache-2.0
"""Runs policy_loss and token_objective on a case."""

import torch

import rlkern
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, leaf_of, upstream


def run_policy_loss(case: Case, batch: Batch, inplace: bool = False) -> Outputs:
    """Returns loss, metrics and gradient of policy_loss."""
    leaf = leaf_of(batch.logits)
    logits = leaf * 1 if inplace else leaf
    out = rlkern.policy_loss(
        logits, batch.token, batch.advantage, batch.mask, algorithm=case.algorithm,
        inplace=inplace, **batch.rows, **batch.softmax, **case.coefficients,
    )  # fmt: skip
    out.loss.backward()
    return {"loss": out.loss, "metrics": out.metrics, "grad_logits": leaf.grad}  # type: ignore[dict-item]


def run_token_objective(case: Case, batch: Batch) -> Outputs:
    """Returns loss, metrics and gradients of token_objective near the old policy."""
    base = batch.ref_logprob + 0.3 * upstream(batch.ref_logprob, 7)
    logprob = torch.where(batch.mask, base, torch.nan).detach().requires_grad_()
    entropy = upstream(base, 8).abs().requires_grad_()
    out = rlkern.token_objective(
        logprob, batch.advantage, batch.mask, entropy=entropy, algorithm=case.algorithm,
        **batch.rows, **case.coefficients,
    )  # fmt: skip
    out.loss.backward()
    return {
        "loss": out.loss,
        "metrics": out.metrics,
        "grad_logprob": logprob.grad,  # type: ignore[dict-item]
        "grad_entropy": entropy.grad,  # type: ignore[dict-item]
    }


RUNS = {
    "policy_loss": run_policy_loss,
    "policy_loss (in place)": lambda case, batch: run_policy_loss(case, batch, inplace=True),
    "token_objective": run_token_objective,
}
VECTOR_OPERATIONS = ("token_objective",)
