# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the log-probability of given tokens, with entropy and log-sum-exp."""

from typing import NamedTuple

import torch
from torch import Tensor

# The token of a row whose token lies in another rank's slice of the vocabulary: its logprob is
# meaningless and its gradient has no element of its own.
ABSENT = torch.iinfo(torch.int64).min
# The dtype that arithmetic is done in, of logits of each dtype.
ACCUMULATION_DTYPE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


class Softmax(NamedTuple):
    """Which distribution a row of logits stands for; all rows the same shape (B, T).

    inv_temperature  (B, T) or None for 1
    softcap          cap of cap·tanh(logit / cap), before the temperature; 0 for none
    keep             (B, T, K) int64 ids of the tokens that could be sampled, none of them twice;
                     −1 in unused places, and a row of nothing but −1 keeps the whole vocabulary;
                     any other negative id is kept, but in another rank's slice of the vocabulary.
                     The token itself could always be sampled
    """

    inv_temperature: Tensor | None = None
    softcap: float = 0.0
    keep: Tensor | None = None


class Statistics(NamedTuple):
    """What the backward needs of each row: lse = row_max + log_sum.

    The two halves of lse are kept apart because their sum loses the digits of log_sum when the
    logits carry a large common offset.
    """

    entropy: Tensor
    row_max: Tensor
    log_sum: Tensor


class Scored(NamedTuple):
    """What is left of each row of logits."""

    logprob: Tensor
    entropy: Tensor
    row_max: Tensor
    log_sum: Tensor
    sum_pi_squared: Tensor

    @property
    def statistics(self) -> Statistics:
        """Returns what the backward needs."""
        return Statistics(self.entropy, self.row_max, self.log_sum)


class Companions(NamedTuple):
    """What is known of each row of logits, whichever of them could be sampled."""

    mean_logit: Tensor
    is_argmax: Tensor  # bool


class Upstream(NamedTuple):
    """The gradients that arrive at the results of token_logprob, each (B, T) or None."""

    logprob: Tensor | None = None
    entropy: Tensor | None = None
    lse: Tensor | None = None


def _kept(keep: Tensor, token: Tensor, vocabulary: int) -> Tensor:
    """Returns (B, T, V), True for the tokens that could be sampled."""
    # One column more, cut off in the end, takes what lies outside.
    chosen = torch.zeros(*keep.shape[:2], vocabulary + 1, dtype=torch.bool, device=keep.device)
    for ids in (keep, token.unsqueeze(-1)):
        chosen = chosen.scatter(-1, torch.where(ids < 0, vocabulary, ids), True)
    return chosen[..., :vocabulary] | (keep == -1).all(-1, keepdim=True)


def _temper(x: Tensor, softmax: Softmax) -> Tensor:
    if softmax.inv_temperature is None:
        return x
    return x * softmax.inv_temperature.to(x.dtype).unsqueeze(-1)


def scaled_logits(logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax) -> Tensor:
    """Returns z of each row in the accumulation dtype; masked rows are replaced by zeros."""
    z = logits.to(ACCUMULATION_DTYPE[logits.dtype])
    if mask is not None:
        z = torch.where(mask.unsqueeze(-1), z, 0.0)
    if softmax.softcap:  # a banned token stays banned
        z = torch.where(z == -torch.inf, z, softmax.softcap * torch.tanh(z / softmax.softcap))
    z = _temper(z, softmax)
    if softmax.keep is not None:
        z = torch.where(_kept(softmax.keep, token, logits.shape[-1]), z, -torch.inf)
    return z


def _element(x: Tensor, token: Tensor) -> Tensor:
    """Returns each row's element at its token, and NaN where the token is ABSENT."""
    found = x.gather(-1, token.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(token == ABSENT, torch.nan, found)


@torch.no_grad()
def token_logprob(logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax) -> Scored:
    """Returns what is left of each row; zeros for masked rows.

    z = softcap·tanh(logits / softcap) / temperature; −inf stays, and is z outside the kept set
    lse = log Σⱼ exp zⱼ        logprob = z[token] − lse        p = exp(z − lse)
    entropy = lse − Σⱼ pⱼ·zⱼ with zero-probability terms dropped        sum_pi_squared = Σⱼ pⱼ²
    """
    if mask is not None:
        token = torch.where(mask, token, 0)
    z = scaled_logits(logits, token, mask, softmax)
    row_max = z.amax(-1)
    u = z - row_max.unsqueeze(-1)
    log_sum = u.exp().sum(-1).log()
    log_p = u - log_sum.unsqueeze(-1)
    p = log_p.exp()
    entropy = log_sum - (p * torch.where(p > 0, u, 0.0)).sum(-1)
    scored = Scored(_element(log_p, token), entropy, row_max, log_sum, p.square().sum(-1))
    if mask is None:
        return scored
    return Scored(*(torch.where(mask, x, 0.0) for x in scored))


@torch.no_grad()
def token_logprob_companions(
    logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax
) -> tuple[Scored, Companions]:
    """Returns what token_logprob does, and the companions of each row; 0 and False if masked.

    mean_logit = Σⱼ zⱼ / V of the whole row, also where a kept set is given: −inf with a logit of
    −inf, NaN with a NaN
    is_argmax = whether the token is the first of the row's largest logits, as they are given: a
    cap or a temperature may round two of them to one number. False for a row that holds a NaN;
    in a row of nothing but −inf the first is the first
    """
    whole = scaled_logits(logits, token, mask, softmax._replace(keep=None))
    x = logits if mask is None else torch.where(mask.unsqueeze(-1), logits, 0.0)
    is_argmax = (x.argmax(-1) == token) & ~x.isnan().any(-1)
    mean_logit = whole.mean(-1)
    if mask is not None:
        is_argmax = is_argmax & mask
        mean_logit = torch.where(mask, mean_logit, 0.0)
    return token_logprob(logits, token, mask, softmax), Companions(mean_logit, is_argmax)


@torch.no_grad()
def token_logprob_backward(
    logits: Tensor,
    token: Tensor,
    mask: Tensor | None,
    softmax: Softmax,
    statistics: Statistics,
    upstream: Upstream,
    grad_logits: Tensor,
) -> None:
    """Writes the gradient of Σ (logprob·d_logprob + entropy·d_entropy + lse·d_lse), d_ upstream.

    dzⱼ = pⱼ·(d_lse − d_logprob − d_entropy·(log pⱼ + entropy)) + d_logprob·[j = token]

    p is taken from the given statistics, which may be those of a larger vocabulary that these
    logits are a slice of. grad_logits may be logits.
    """
    if mask is not None:
        token = torch.where(mask, token, 0)
    z = scaled_logits(logits, token, mask, softmax)
    entropy, row_max, log_sum = (x.unsqueeze(-1) for x in statistics)
    log_p = z - row_max - log_sum
    p = log_p.exp()
    d_logprob, d_entropy, d_lse = (
        torch.zeros_like(entropy) if g is None else g.unsqueeze(-1) for g in upstream
    )
    surprise = torch.where(p > 0, log_p + entropy, 0.0)
    grad = p * (d_lse - d_logprob - d_entropy * surprise)
    own = torch.where((token == ABSENT).unsqueeze(-1), 0.0, d_logprob)
    grad = _temper(grad.scatter_add(-1, token.clamp(min=0).unsqueeze(-1), own), softmax)
    if softmax.softcap:
        grad = grad * (1 - torch.tanh(logits.to(grad.dtype) / softmax.softcap).square())
    if mask is not None:
        grad = torch.where(mask.unsqueeze(-1), grad, 0.0)
    grad_logits.copy_(grad)
