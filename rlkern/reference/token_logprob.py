# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the log-probability of given tokens, with entropy and log-sum-exp."""

import torch
from torch import Tensor

from rlkern.reference.autograd import recording


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype arithmetic is done in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scaled_logits(logits: Tensor, mask: Tensor | None, inv_temperature: Tensor | None) -> Tensor:
    """Returns z = logits / temperature in the accumulation dtype, masked rows replaced by zeros."""
    z = logits.to(accumulation_dtype(logits.dtype))
    if mask is not None:
        # Selected before any arithmetic: NaN · 0 in a backward would leak garbage of masked rows.
        z = torch.where(mask.unsqueeze(-1), z, 0.0)
    if inv_temperature is not None:
        z = z * inv_temperature.to(z.dtype).unsqueeze(-1)
    return z


def differentiable_token_logprob(
    logits: Tensor,
    token: Tensor,
    mask: Tensor | None = None,
    inv_temperature: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (logprob, entropy, lse) of each row, differentiable by autograd.

    z = logits / temperature;  lse = log Σⱼ exp zⱼ;  logprob = z[token] − lse;
    entropy = lse − Σⱼ pⱼ·zⱼ with p = exp(z − lse) and zero-probability terms dropped.
    """
    z = scaled_logits(logits, mask, inv_temperature)
    if mask is not None:
        token = torch.where(mask, token, 0)
    log_p = torch.log_softmax(z, dim=-1)
    logprob = log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1)
    row_max = z.detach().amax(-1, keepdim=True)
    u = z - row_max
    log_sum = u.exp().sum(-1).log()
    p = log_p.exp()
    entropy = log_sum - (p * torch.where(p > 0, u, 0.0)).sum(-1)
    lse = row_max.squeeze(-1) + log_sum
    if mask is None:
        return logprob, entropy, lse
    return tuple(torch.where(mask, x, 0.0) for x in (logprob, entropy, lse))  # type: ignore[return-value]


def token_logprob(
    logits: Tensor, token: Tensor, mask: Tensor | None, inv_temperature: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (logprob, entropy, row_max, log_sum) with lse = row_max + log_sum; masked rows are 0.

    The two halves of lse are kept apart because their sum loses the digits of log_sum when the
    logits carry a large common offset, and the backward needs them.
    """
    with torch.no_grad():
        logprob, entropy, _ = differentiable_token_logprob(logits, token, mask, inv_temperature)
        z = scaled_logits(logits, mask, inv_temperature)
        row_max = z.amax(-1)
        log_sum = (z - row_max.unsqueeze(-1)).exp().sum(-1).log()
        if mask is not None:
            log_sum = torch.where(mask, log_sum, 0.0)
    return logprob, entropy, row_max, log_sum


def token_logprob_backward(
    logits: Tensor,
    token: Tensor,
    mask: Tensor | None,
    inv_temperature: Tensor | None,
    entropy: Tensor,
    row_max: Tensor,
    log_sum: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    grad_lse: Tensor | None,
    grad_logits: Tensor,
) -> None:
    """Writes the gradient of Σ (logprob·grad_logprob + entropy·grad_entropy + lse·grad_lse)."""
    grads = (grad_logprob, grad_entropy, grad_lse)
    with recording():
        leaf = logits.detach().requires_grad_()
        outputs = differentiable_token_logprob(leaf, token, mask, inv_temperature)
        used = [(x, g.to(x.dtype)) for x, g in zip(outputs, grads) if g is not None]
        results, upstream = zip(*used)
        (gradient,) = torch.autograd.grad(results, leaf, upstream)
    grad_logits.copy_(gradient)
