# SPDX-License-Identifier: Apache-2.0
"""The operation token_logprob: log-probability, entropy and lse of given tokens, differentiable."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlkern.backends import implementation
from rlkern.backends.eager.token_logprob import (
    ACCUMULATION_DTYPE,
    Scored,
    Softmax,
    Statistics,
    Upstream,
)
from rlkern.backends.memory import fresh
from rlkern.ops import _check as check
from rlkern.ops import _sharded as sharded
from rlkern.ops._library import (
    bump_version_of_first_argument,
    refuse_double_backward,
    register,
    register_gradient,
    saved_tensors,
    upstream_of_scores,
)
from rlkern.ops._rows import SOFTMAX, as_grid, make_softmax, mask_vector, token_vector


class TokenLogprob(NamedTuple):
    """Per-token results in the leading shape of the logits: float32, or float64 for float64."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    sum_pi_squared: Tensor


class CompanionLogprob(NamedTuple):
    """TokenLogprob and, for who asks, what else is known of a row of logits; is_argmax is bool."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    sum_pi_squared: Tensor
    mean_logit: Tensor
    is_argmax: Tensor


def results(scored: Sequence[Tensor], shape: torch.Size) -> TokenLogprob | CompanionLogprob:
    """Returns what the public functions do, in this shape: of a Scored, after which companions may
    come."""
    logprob, entropy, row_max, log_sum, *rest = scored
    found = [x.reshape(shape) for x in (logprob, entropy, row_max + log_sum, *rest)]
    return TokenLogprob(*found) if len(found) == 4 else CompanionLogprob(*found)


def _forward(logits, token, mask, *softmax):
    return implementation("token_logprob", logits)(logits, token, mask, Softmax(*softmax))


def _forward_fake(logits, token, *rest):
    dtype = ACCUMULATION_DTYPE[logits.dtype]
    return tuple(logits.new_empty(token.shape, dtype=dtype) for _ in Scored._fields)


def _forward_with_companions(logits, token, mask, *softmax):
    serve = implementation("token_logprob_companions", logits)
    scored, companions = serve(logits, token, mask, Softmax(*softmax))
    return *scored, *companions


def _forward_with_companions_fake(logits, token, *rest):
    scored = _forward_fake(logits, token)
    return *scored, torch.empty_like(scored[0]), torch.empty_like(scored[0], dtype=torch.bool)


def _write_gradient(logits, token, mask, rest, grad_logits):
    implementation("token_logprob_backward", logits)(
        logits, token, mask, Softmax(*rest[:3]), Statistics(*rest[3:6]), Upstream(*rest[6:]),
        grad_logits,
    )  # fmt: skip


def _backward(logits, token, mask, *rest):
    grad_logits = fresh(logits.shape, logits)
    _write_gradient(logits, token, mask, rest, grad_logits)
    return grad_logits


def _backward_fake(logits, *rest):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _backward_in_place(logits, token, mask, *rest):
    _write_gradient(logits, token, mask, rest, logits)


_SCORED = f"Tensor token, Tensor? mask, {SOFTMAX}"
_ROWS = (
    f"{_SCORED}, Tensor entropy, Tensor row_max, Tensor log_sum, "
    "Tensor? grad_logprob, Tensor? grad_entropy, Tensor? grad_lse"
)
forward = register(
    f"token_logprob(Tensor logits, {_SCORED}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
forward_with_companions = register(
    f"token_logprob_companions(Tensor logits, {_SCORED})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_with_companions,
    _forward_with_companions_fake,
)
backward = register(
    f"token_logprob_backward(Tensor logits, {_ROWS}) -> Tensor", _backward, _backward_fake
)
backward_ = register(
    f"token_logprob_backward_(Tensor(a!) logits, {_ROWS}) -> ()",
    _backward_in_place,
    lambda logits, *rows: None,
)
bump_version_of_first_argument(backward_)


def _setup_context(ctx, inputs, output):
    logits, token, mask, inv_temperature, softcap, keep = inputs
    _, entropy, row_max, log_sum, *constants = output
    ctx.save_for_backward(logits, token, mask, inv_temperature, keep, entropy, row_max, log_sum)
    ctx.softcap = softcap
    ctx.mark_non_differentiable(row_max, *constants)
    ctx.set_materialize_grads(False)


def _arguments(ctx, grads):
    """Returns (logits, the other arguments of the backward), or None if no gradient arrived."""
    upstream = upstream_of_scores(grads)
    if upstream is None:
        return None
    # Once: activation checkpointing refuses a second look.
    logits, token, mask, inv_temperature, keep, *statistics = saved_tensors(ctx, "token_logprob")
    return logits, (token, mask, inv_temperature, ctx.softcap, keep, *statistics, *upstream)


def _autograd(ctx, *grads):
    refuse_double_backward("token_logprob")
    found = _arguments(ctx, grads)
    return (None if found is None else backward(found[0], *found[1]),)


for _operation in (forward, forward_with_companions):
    register_gradient(_operation, _autograd, _setup_context)


class _InPlace(torch.autograd.Function):
    """As a functional operation, but the backward overwrites the logits with their gradient."""

    @staticmethod
    def forward(ctx, logits, operation, *rest):
        output = operation(logits.detach(), *rest)
        _setup_context(ctx, (logits, *rest), output)
        return output

    @staticmethod
    def backward(ctx, *grads):
        found = _arguments(ctx, grads)
        if found is None:
            return (None,) * 7
        saved, rest = found
        if torch.compiler.is_compiling():
            return backward(saved, *rest), *(None,) * 6
        refuse_double_backward("token_logprob")
        logits = saved.detach()
        backward_(logits, *rest)
        return logits, *(None,) * 6


def token_logprob(
    logits: Tensor,
    token: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    keep: Tensor | None = None,
    inplace: bool = False,
    group: ProcessGroup | None = None,
    companions: bool = False,
) -> TokenLogprob | CompanionLogprob:
    """Returns the log-probability of each token, and entropy, log-sum-exp and Σp² of its row.

        z = softcap·tanh(logits / softcap) / temperature        lse = log Σⱼ exp zⱼ
        logprob = z[token] − lse        entropy = lse − Σⱼ pⱼ·zⱼ,  p = exp(z − lse)

    logits[b, t] scores token[b, t]: nothing is shifted here.

    Arguments
        logits       (..., V) float16, bfloat16, float32 or float64; the last dimension contiguous
        token        (...) int64 or int32; any value where mask is False
        temperature  a number > 0, or a float tensor that broadcasts to (...)
        softcap      a number > 0 (Gemma's final_logit_softcapping), or None; torch.compile takes it
                     for a constant of the model and compiles anew for another
        mask         (...) bool, True counts; other rows are not read and give 0
        keep         (..., K) int64 or int32: the ids top-k, top-p or min-p left to the sampler, −1
                     in unused places. The probabilities are those among these (and the token). A
                     row of nothing but −1 keeps the whole vocabulary
        inplace      the backward overwrites the logits with their gradient, saving an (N, V) buffer
        group        the process group whose ranks hold the vocabulary in slices, in rank order and
                     of any size above 0: logits are this rank's slice, token and keep are ids of
                     the whole vocabulary, and all but the logits is the same on every rank
        companions   also mean_logit, Σⱼ zⱼ / V, and is_argmax, whether the token is the first of
                     the row's largest logits, from the same read of the row; not with group. Both
                     are of the whole row, also with keep. A NaN in it makes them NaN and False
    Returns
        TokenLogprob(logprob, entropy, lse, sum_pi_squared), each (...) float32 (float64 for
        float64 logits); with companions CompanionLogprob, which ends in mean_logit and is_argmax
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
        RuntimeError           on double backward
    Gradient
        to logits, through logprob, entropy and lse; the other results are constants.
        With group each rank gets its slice's, provided that all make the same loss

    >>> import math, torch
    >>> logits = torch.tensor([[0.0, math.log(3.0)]])
    >>> out = token_logprob(logits, torch.tensor([1]))
    >>> round(out.logprob.exp().item(), 4), round(out.lse.exp().item(), 4)
    (0.75, 4.0)
    >>> token_logprob(logits, torch.tensor([1]), companions=True).is_argmax
    tensor([True])
    """
    op = "token_logprob"
    check.logits(op, logits)
    check.whole_rows(op, companions, group)
    if inplace:
        check.overwritable(op, logits)
    shape = logits.shape[:-1]
    check.like(op, "token", token, shape, logits, check.INTEGERS)
    if mask is not None:
        check.like(op, "mask", mask, shape, logits, (torch.bool,))
    grid = as_grid(op, logits)
    part = None if group is None else sharded.slice_of(op, grid, group)
    whole = grid if part is None else part.whole
    check.token_values(op, token, mask, whole.shape[-1])
    softmax = make_softmax(op, whole, shape, mask, temperature, softcap, keep)
    rows = token_vector(token, grid), mask_vector(mask, grid)
    if part is None:
        operation = forward_with_companions if companions else forward
        if inplace:
            return results(_InPlace.apply(grid, operation, *rows, *softmax), shape)
        return results(operation(grid, *rows, *softmax), shape)
    return results(sharded.score(part, grid, *rows, softmax, inplace), shape)
