# SPDX-License-Identifier: Apache-2.0
"""Hands token_logprob and its backward to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.eager.token_logprob import (
    ACCUMULATION_DTYPE,
    Companions,
    Scored,
    Softmax,
    Statistics,
    Upstream,
)


def token_logprob(logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax) -> Scored:
    """Returns what is left of each row; see rlkern.backends.eager.token_logprob."""
    out = _empty_scored(logits, token)
    _C.token_logprob(
        logits=logits,
        token=token,
        mask=mask,
        softmax=softmax,
        out=out,
        threads=torch.get_num_threads(),
    )
    return out


def token_logprob_companions(
    logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax
) -> tuple[Scored, Companions]:
    """Returns what is left of each row, and its companions."""
    out = _empty_scored(logits, token)
    is_argmax = torch.empty(token.shape, dtype=torch.bool)
    companions = Companions(torch.empty_like(out.logprob), is_argmax)
    _C.token_logprob_companions(
        logits=logits,
        token=token,
        mask=mask,
        softmax=softmax,
        out=out,
        companions=companions,
        threads=torch.get_num_threads(),
    )
    return out, companions


def _empty_scored(logits: Tensor, token: Tensor) -> Scored:
    dtype = ACCUMULATION_DTYPE[logits.dtype]
    return Scored(*(torch.empty(token.shape, dtype=dtype) for _ in Scored._fields))


def token_logprob_backward(
    logits: Tensor,
    token: Tensor,
    mask: Tensor | None,
    softmax: Softmax,
    statistics: Statistics,
    upstream: Upstream,
    grad_logits: Tensor,
) -> None:
    """Writes the gradient of token_logprob's results into grad_logits, which may be logits."""
    _C.token_logprob_backward(
        logits=logits,
        token=token,
        mask=mask,
        softmax=softmax,
        statistics=statistics,
        upstream=upstream,
        grad_logits=grad_logits,
        threads=torch.get_num_threads(),
    )
