# SPDX-License-Identifier: Apache-2.0
"""The cpu backend: hands tensors to the C++ kernels of rlkern._C as addresses.

Names and signatures are those of rlkern.reference; the tensors were checked at the door.
"""

import torch
from torch import Tensor

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.reference.group_advantage import KINDS
from rlkern.reference.token_objective import GATE_INDEX, KL_INDEX, METRICS, Objective

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def unavailable() -> str | None:
    """Returns None; raises ValueError if RLKERN_ISA asks for what this machine cannot run."""
    _C.isa_chosen()
    return None


def unsupported(stem: str, device: str, dtype: torch.dtype) -> str | None:
    """Returns why this backend cannot serve the call, or None."""
    if device != "cpu":
        return f"serves cpu tensors, not {device}"
    if dtype not in DTYPES:
        return f"does not know {dtype}"
    return None


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [_address(x) for x in tensors]


def _grid(x: Tensor) -> tuple[int, ...]:
    return (x.data_ptr(), DTYPES[x.dtype], *x.shape, x.stride(0), x.stride(1))


def _objective(objective: Objective) -> tuple:
    gate, coef, kl, *rest = objective
    return (GATE_INDEX[gate], coef, KL_INDEX[kl], *rest)


def _scalars(like: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty((), dtype=dtype), torch.empty(len(METRICS), dtype=dtype)


def token_logprob(
    logits: Tensor, token: Tensor, mask: Tensor | None, inv_temperature: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (logprob, entropy, row_max, log_sum); see rlkern.reference.token_logprob."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = [torch.empty(token.shape, dtype=dtype) for _ in range(4)]
    _C.token_logprob(
        _grid(logits),
        *_addresses(token, mask, inv_temperature),
        _addresses(*out),
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
        _grid(logits),
        *_addresses(token, mask, inv_temperature),
        _addresses(*rows),
        _grid(grad_logits),
        torch.get_num_threads(),
    )


def policy_loss(
    logits: Tensor,
    token: Tensor,
    advantage: Tensor,
    weight: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    inv_temperature: Tensor | None,
    objective: Objective,
    grad_logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics) and writes the gradient into grad_logits, which may be logits."""
    loss, metrics = _scalars(logits)
    _C.policy_loss(
        _grid(logits),
        _address(token),
        _addresses(advantage, weight, old_logprob, ref_logprob),
        _address(inv_temperature),
        _objective(objective),
        None if grad_logits is None else _grid(grad_logits),
        *_addresses(loss, metrics),
        torch.get_num_threads(),
    )
    return loss, metrics


def token_objective(
    logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    weight: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_logprob, grad_entropy)."""
    loss, metrics = _scalars(logprob)
    grad_logprob, grad_entropy = torch.empty_like(logprob), torch.empty_like(entropy)
    _C.token_objective(
        logprob.numel(),
        logprob.dtype == torch.float64,
        *_addresses(logprob, entropy),
        _addresses(advantage, weight, old_logprob, ref_logprob),
        _objective(objective),
        _addresses(loss, metrics, grad_logprob, grad_entropy),
    )
    return loss, metrics, grad_logprob, grad_entropy


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor, in place; by 1 costs nothing."""
    if factor.item() != 1:
        tensor.mul_(factor.item())


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor; tensor itself where the factor is 1."""
    return tensor if factor.item() == 1 else tensor * factor.item()


def reverse_scan(bias: Tensor, decay: Tensor) -> Tensor:
    """Returns x with x_t = bias_t + decay_t · x_{t+1} along the rows of (B, T)."""
    x = torch.empty_like(bias)
    _C.reverse_scan(
        *bias.shape,
        bias.dtype == torch.float64,
        *_addresses(bias, decay, x),
        torch.get_num_threads(),
    )
    return x


def group_advantage(
    reward: Tensor, order: Tensor, offset: Tensor, kind: str, eps: float, ddof: int
) -> Tensor:
    """Returns the advantage of each reward within its group."""
    advantage = torch.empty_like(reward)
    _C.group_advantage(
        reward.numel(),
        reward.dtype == torch.float64,
        *_addresses(reward, order, offset),
        KINDS.index(kind),
        eps,
        ddof,
        _address(advantage),
    )
    return advantage
