# SPDX-License-Identifier: Apache-2.0
"""The operation token_logprob: log-probability, entropy and lse of given tokens, differentiable."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.ops import check
from rlkern.ops.library import bump_version_of_first_argument, refuse_double_backward, register
from rlkern.ops.rows import as_grid, inverse_temperature, token_vector


class TokenLogprob(NamedTuple):
    """Per-token results in the leading shape of the logits: float32, or float64 for float64."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor


def _accumulation_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _forward(logits, token, mask, inv_temperature):
    return implementation("token_logprob", logits)(logits, token, mask, inv_temperature)


def _forward_fake(logits, token, mask, inv_temperature):
    return tuple(logits.new_empty(token.shape, dtype=_accumulation_dtype(logits)) for _ in range(4))


def _backward(logits, *rows):
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    implementation("token_logprob_backward", logits)(logits, *rows, grad_logits)
    return grad_logits


def _backward_fake(logits, *rows):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _backward_in_place(logits, *rows):
    implementation("token_logprob_backward", logits)(logits, *rows, logits)


_ROWS = (
    "Tensor token, Tensor? mask, Tensor? inv_temperature, Tensor entropy, Tensor row_max, "
    "Tensor log_sum, Tensor? grad_logprob, Tensor? grad_entropy, Tensor? grad_lse"
)
forward = register(
    "token_logprob(Tensor logits, Tensor token, Tensor? mask, Tensor? inv_temperature)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
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
    logits, token, mask, inv_temperature = inputs
    _, entropy, row_max, log_sum = output
    ctx.save_for_backward(logits, token, mask, inv_temperature, entropy, row_max, log_sum)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_logprob, grad_entropy, grad_row_max, grad_log_sum):
    # lse = row_max + log_sum: its whole gradient arrives through log_sum, row_max is a constant.
    refuse_double_backward("token_logprob")
    grads = [
        None if g is None else g.contiguous() for g in (grad_logprob, grad_entropy, grad_log_sum)
    ]
    if all(g is None for g in grads):
        return None, None, None, None
    return backward(*ctx.saved_tensors, *grads), None, None, None


torch.library.register_autograd("rlkern::token_logprob", _autograd, setup_context=_setup_context)


class _InPlace(torch.autograd.Function):
    """As the functional operation, but the backward overwrites the logits with their gradient."""

    @staticmethod
    def forward(ctx, logits, token, mask, inv_temperature):
        output = forward(logits.detach(), token, mask, inv_temperature)
        _setup_context(ctx, (logits, token, mask, inv_temperature), output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logprob, grad_entropy, grad_row_max, grad_log_sum):
        grads = [
            None if g is None else g.contiguous()
            for g in (grad_logprob, grad_entropy, grad_log_sum)
        ]
        if all(g is None for g in grads):
            return None, None, None, None
        saved, *rows = ctx.saved_tensors  # once: activation checkpointing refuses a second look
        if torch.compiler.is_compiling():
            return backward(saved, *rows, *grads), None, None, None
        logits = saved.detach()
        backward_(logits, *rows, *grads)
        return logits, None, None, None


def token_logprob(
    logits: Tensor,
    token: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    inplace: bool = False,
) -> TokenLogprob:
    """Returns the log-probability of each token, and the entropy and log-sum-exp of its row.

        z = logits / temperature        lse = log Σⱼ exp zⱼ
        logprob = z[token] − lse        entropy = lse − Σⱼ pⱼ·zⱼ,  p = exp(z − lse)

    logits[b, t] scores token[b, t]: nothing is shifted here.

    Arguments
        logits       (..., V) float16, bfloat16, float32 or float64; the last dimension contiguous
        token        (...) int64 or int32; any value where mask is False
        temperature  a number > 0, or a float tensor that broadcasts to (...)
        mask         (...) bool, True counts; other rows are not read and give 0
        inplace      the backward overwrites the logits with their gradient, saving an (N, V) buffer
    Returns
        TokenLogprob(logprob, entropy, lse), each (...) float32 (float64 for float64 logits)
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
        RuntimeError           on double backward
    Gradient
        to logits, through all three results; token, temperature and mask are constants

    >>> import math, torch
    >>> logits = torch.tensor([[0.0, math.log(3.0)]])
    >>> out = token_logprob(logits, torch.tensor([1]))
    >>> round(out.logprob.exp().item(), 4), round(out.lse.exp().item(), 4)
    (0.75, 4.0)
    """
    op = "token_logprob"
    check.logits(op, logits)
    shape = logits.shape[:-1]
    check.like(op, "token", token, shape, logits, check.INTEGERS)
    if mask is not None:
        check.like(op, "mask", mask, shape, logits, (torch.bool,))
    check.token_values(op, token, mask, logits.shape[-1])
    grid = as_grid(op, logits)
    inv_temperature = inverse_temperature(op, temperature, mask, shape, grid)
    mask_rows = None if mask is None else mask.reshape(grid.shape[:2]).contiguous()
    run = _InPlace.apply if inplace else forward
    logprob, entropy, row_max, log_sum = run(
        grid, token_vector(token, grid), mask_rows, inv_temperature
    )
    lse = row_max.detach() + log_sum
    return TokenLogprob(logprob.reshape(shape), entropy.reshape(shape), lse.reshape(shape))
