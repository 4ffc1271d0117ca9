# SPDX-License-Identifier: Apache-2.0
"""Rows as a backend's own functions take them, with inputs that no front door would let through."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkern.backends.eager.token_logprob import Softmax, Statistics, Upstream
from rlkern.backends.eager.token_objective import Objective, Rows

OBJECTIVE = Objective("ppo_clip", "token", "k3", (0.2, 0.28, 0.0, 0.0), 0.1, 0.01)


class Inputs(NamedTuple):
    """Rows of logits with what a loss needs beside them."""

    logits: Tensor
    token: Tensor
    rows: Rows
    softmax: Softmax = Softmax()


def inputs(V: int, B: int = 1, T: int = 3, dtype: torch.dtype = torch.float32) -> Inputs:
    """Returns random inputs; the first token is the last column."""
    random = torch.Generator().manual_seed(V)
    x = [torch.rand(B, T, generator=random) + 0.1 for _ in range(2)]
    level = [-math.log(V) + 0.2 * torch.randn(B, T, generator=random) for _ in range(2)]
    token = torch.randint(0, V, (B, T), generator=random)
    token[0, 0] = V - 1
    logits = torch.randn(B, T, V, generator=random).to(dtype)
    return Inputs(logits, token, Rows(x[0] - 0.5, x[1], *level))


def loss(backend: Any, given: Inputs, grad: Tensor | None = None) -> list[Tensor]:
    """Returns [loss, metrics, gradient] of the policy loss."""
    grad = torch.zeros_like(given.logits) if grad is None else grad
    return [
        *backend.policy_loss(
            given.logits, given.token, given.rows, given.softmax, OBJECTIVE, grad
        ),
        grad,
    ]  # fmt: skip


def scored(backend: Any, given: Inputs) -> list[Tensor]:
    """Returns [log π, H, lse, Σπ²] and the gradient of their sum, made in place."""
    mask = given.rows.weight != 0
    found = backend.token_logprob(given.logits, given.token, mask, given.softmax)
    grad, one = given.logits.clone(), torch.ones_like(found.entropy)
    backend.token_logprob_backward(
        grad, given.token, mask, given.softmax,
        Statistics(found.entropy, found.row_max, found.log_sum), Upstream(one, one, one), grad,
    )  # fmt: skip
    lse = found.row_max + found.log_sum
    return [found.logprob, found.entropy, lse, found.sum_pi_squared, grad]


class Bad(NamedTuple):
    """An input that is not as it should be, and what it is given to."""

    name: str
    call: Callable[[Any], list[Tensor]]


def bad_rows() -> Iterator[Bad]:
    """Yields losses of rows with NaN, infinities, nothing that counts, or no rows."""
    for where, index, number in (
        ("logit NaN", (0, 1, 7), math.nan),
        ("logit +inf", (0, 1, 7), math.inf),
        ("logits −inf", (0, 1, slice(0, 299)), -math.inf),
        ("all logits −inf", (0, 1, slice(None)), -math.inf),
    ):
        given = inputs(300)
        given.logits[index] = number
        yield Bad(f"{where}: loss", lambda b, given=given: loss(b, given))
        yield Bad(f"{where}: log-probabilities", lambda b, given=given: scored(b, given))
    own = inputs(300)
    own.logits[0, 1, own.token[0, 1]] = -math.inf
    yield Bad("the token's logit −inf", lambda b: loss(b, own))
    for number in (math.nan, math.inf, -math.inf):
        for name in ("old_logprob", "ref_logprob", "advantage"):
            given = inputs(300)
            getattr(given.rows, name)[0, 2] = number
            yield Bad(f"{name} {number}", lambda b, given=given: loss(b, given))
    none = inputs(300)
    none.rows.weight.zero_()
    none.logits.fill_(math.nan)
    yield Bad("nothing counts", lambda b: [*loss(b, none), *scored(b, none)])
    empty = inputs(300)
    empty = Inputs(*(x[:, :0] for x in empty[:2]), Rows(*(x[:, :0] for x in empty.rows[:4])))
    yield Bad("no rows", lambda b: [*loss(b, empty), *scored(b, empty)])


def unlike(got: Tensor, want: Tensor) -> bool:
    """Returns whether two results differ by a thousandth, or where they are infinite or NaN.

    In a gradient of logits infinity and NaN are alike: of an infinite loss the reference adds ∞ and
    −∞ where a kernel does not, at the token's own logit.
    """
    got, want = got.double(), want.double()
    if got.ndim == 3:
        got, want = (x.masked_fill(~x.isfinite(), math.nan) for x in (got, want))
    return not torch.allclose(got, want, rtol=1e-3, atol=1e-5, equal_nan=True)
