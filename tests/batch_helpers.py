# SPDX-License-Identifier: Apache-2.0
"""Batches drawn by hypothesis, and everything the logits path makes of them."""

import pytest
import torch

pytest.importorskip("hypothesis")  # skips the module that asks for this one
from hypothesis import strategies as st

import rlkern
from rlkern.backends import _load
from rlkern.testing.cases import Batch, Case, make_batch

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
# k3 grows as exp(−d): far from the reference it leaves float32.
TERMS = {"kl_coef": 0.3, "kl_estimator": "k2", "entropy_coef": 0.2}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 2, 7, 16, 33, 64, 129)


@st.composite
def batches(draw, dtypes=DTYPES, smallest=1, softcaps=(None, 5.0)):
    """Draws a batch with any mask."""
    B, T = draw(st.integers(smallest, 4)), draw(st.integers(smallest, 5))
    case = Case(
        "drawn", B=B, T=T, V=draw(st.sampled_from(WIDTHS)), mask="full", temperature="rows",
        values=draw(st.sampled_from(("normal", "offset", "wide"))), correction=True,
        keep=draw(st.sampled_from(("none", "narrow"))), softcap=draw(st.sampled_from(softcaps)),
    )  # fmt: skip
    batch = make_batch(case, draw(st.sampled_from(dtypes)))
    flags = draw(st.lists(st.booleans(), min_size=B * T, max_size=B * T))
    batch.mask = torch.tensor(flags, dtype=torch.bool).reshape(B, T)
    return batch


def each(batch: Batch, function) -> Batch:
    """Returns the batch with a function applied to each of its tensors."""
    rows = vars(batch).items()
    return Batch(**{n: function(x) if isinstance(x, torch.Tensor) else x for n, x in rows})


def with_garbage(batch: Batch, garbage: float) -> Batch:
    """Returns the batch with garbage wherever nothing is counted."""

    def spoiled(x):
        if x is batch.mask:
            return x
        x = x.clone()
        x[~batch.mask] = garbage if x.is_floating_point() else -100
        return x

    return each(batch, spoiled)


def packed(batch: Batch) -> Batch:
    """Returns the counted rows of all sequences in one row."""
    lengths = batch.mask.sum(-1)
    flat = each(batch, lambda x: x[batch.mask])
    flat.cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    return flat


def weight_of(batch: Batch):
    return rlkern.aggregate.token_weight(
        batch.mask, "sequence_token_mean", count=3, cu_seqlens=batch.cu_seqlens
    )


def loss_and_gradient(batch: Batch, weight=None, inplace=False, token=None, algorithm="grpo"):
    """Returns (loss, metrics, gradient of the logits) of a policy loss with all its terms."""
    leaf = batch.logits.detach().clone().requires_grad_()
    out = rlkern.policy_loss(
        leaf * 1, batch.token if token is None else token, batch.advantage, batch.mask,
        weight=weight_of(batch) if weight is None else weight, inplace=inplace,
        algorithm=algorithm, **batch.rows, **batch.softmax, **TERMS,
    )  # fmt: skip
    out.loss.backward()
    return out.loss.detach(), out.metrics, leaf.grad


def scores_and_gradient(batch: Batch, inplace=False):
    """Returns the scores and the gradient of the logits, all of them per row."""
    leaf = batch.logits.detach().clone().requires_grad_()
    out = rlkern.token_logprob(
        leaf * 1, batch.token, mask=batch.mask, inplace=inplace, **batch.softmax
    )
    wanted = out[:3]  # sum_pi_squared is a constant
    torch.autograd.backward(wanted, [torch.full_like(x, 0.3 + i) for i, x in enumerate(wanted)])
    return *(x.detach() for x in out), leaf.grad


def per_row(batch: Batch):
    """Returns everything that is computed per row, by either operation and at either level."""
    gradients = [loss_and_gradient(batch, algorithm=name)[2] for name in ("grpo", "gspo", "gmpo")]
    return *scores_and_gradient(batch), *gradients


def same_bits(xs, ys) -> bool:
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(xs, ys, strict=True))
