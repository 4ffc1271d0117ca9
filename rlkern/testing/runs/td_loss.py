# SPDX-License-Identifier: Apache-2.0
"""Runs every bootstrap of td_loss on as many actions as a case has logits in a row."""

from typing import Any

import torch
from torch import Tensor

from rlkern.ops.td_loss import td_loss
from rlkern.testing.cases import Batch, Case
from rlkern.testing.runs.inputs import Outputs, upstream

_KIND = {"max": "huber", "double": "squared", "twin_min": "full_squared"}


def _second(bootstrap: str, like: Tensor) -> dict[str, Any]:
    other = upstream(like, 3)
    return {
        "max": {},
        "double": {"online_next_q": other},
        "twin_min": {"second_next_q": other},
        "sarsa": {"next_action": torch.arange(len(like), device=like.device) % like.shape[1]},
        "expected": {"next_probability": other.softmax(-1)},
    }[bootstrap]


def run_td_loss(case: Case, batch: Batch) -> Outputs:
    """Returns loss, metrics, errors and gradient of each bootstrap; some episodes are done."""
    outputs: Outputs = {}
    rows, actions = batch.mask.numel(), min(case.V, 300)
    reward, weight = (upstream(batch.ref_logprob.new_empty(rows), seed) for seed in (1, 2))
    table = batch.ref_logprob.new_empty(rows, actions)
    action = torch.arange(rows, device=table.device) * 7 % actions
    done = action % 3 == 1
    next_q = upstream(table, 4).masked_fill(done[:, None], torch.nan)
    weight = torch.where(batch.mask.flatten(), weight.abs(), 0.0)
    for bootstrap in ("max", "double", "twin_min", "sarsa", "expected"):
        q = upstream(table, 5).requires_grad_()
        out = td_loss(
            q, action, reward, done, next_q, bootstrap=bootstrap, weight=weight,
            kind=_KIND.get(bootstrap, "huber"), delta=0.7, **_second(bootstrap, table),
        )  # fmt: skip
        out.loss.backward()
        outputs |= {f"{name} {bootstrap}": x for name, x in out._asdict().items()}
        outputs[f"metrics {bootstrap}"] = out.metrics.to(q.dtype)  # of which they are made
        outputs[f"grad_q {bootstrap}"] = q.grad  # type: ignore[assignment]
    return outputs


RUNS = {"td_loss": run_td_loss}
VECTOR_OPERATIONS = tuple(RUNS)
