# SPDX-License-Identifier: Apache-2.0
"""Hands token_logprob and its backward to CUDA C++."""

import torch
from torch import Tensor

from rlkern.backends.cuda.library import (
    TokenLogprob,
    TokenLogprobBackward,
    address,
    call,
    rows_call,
)
from rlkern.backends.eager.token_logprob import Scored, Softmax, Statistics, Upstream


def token_logprob(logits: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax) -> Scored:
    """Returns what is left of each row; see rlkern.backends.eager.token_logprob."""
    arguments = rows_call("token_logprob", logits, token, softmax, None)
    x = logits.new_empty(token.shape, dtype=torch.float32)
    out = Scored(*(torch.empty_like(x) for _ in Scored._fields))
    with torch.cuda.device_of(logits):
        call("token_logprob", TokenLogprob(arguments, address(mask), *map(address, out)))
    return out


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
    arguments = rows_call("token_logprob_backward", logits, token, softmax, grad_logits)
    vectors = map(address, (mask, *statistics, *upstream))
    with torch.cuda.device_of(logits):
        call("token_logprob_backward", TokenLogprobBackward(arguments, *vectors))
