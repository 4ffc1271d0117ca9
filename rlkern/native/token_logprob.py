# SPDX-License-Identifier: Apache-2.0
"""Hands token_logprob and its backward to C++."""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.native.arguments import addresses, grid


def token_logprob(
    logits: Tensor, token: Tensor, mask: Tensor | None, inv_temperature: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (logprob, entropy, row_max, log_sum); see rlkern.reference.token_logprob."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = [torch.empty(token.shape, dtype=dtype) for _ in range(4)]
    _C.token_logprob(
        grid(logits),
        *addresses(token, mask, inv_temperature),
        addresses(*out),
        torch.get_num_threads(),
    )
    return tuple(out)  # type: ignore[return-value]


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
    """Writes the gradient of token_logprob's results into grad_logits, which may be logits."""
    rows = (entropy, row_max, log_sum, grad_logprob, grad_entropy, grad_lse)
    _C.token_logprob_backward(
        grid(logits),
        *addresses(token, mask, inv_temperature),
        addresses(*rows),
        grid(grad_logits),
        torch.get_num_threads(),
    )
