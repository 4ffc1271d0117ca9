# SPDX-License-Identifier: Apache-2.0
"""Hands policy_loss to CUDA C++."""

import ctypes

import torch
from torch import Tensor

from rlkern.backends.cuda.library import (
    COEFFICIENTS,
    PolicyLoss,
    Scale,
    address,
    call,
    grid,
    rows_call,
    stream_and_device,
)
from rlkern.backends.eager.gates import GATE_INDEX
from rlkern.backends.eager.kl import KL_INDEX
from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.eager.token_objective import METRICS, SUMMED_METRICS, Objective, Rows


def policy_loss(
    logits: Tensor,
    token: Tensor,
    rows: Rows,
    softmax: Softmax,
    objective: Objective,
    grad_logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (loss, metrics); writes the gradient into grad_logits (logits itself, too) if any.

    Of level token: a sequence's ratio is not known before its last row is read.
    """
    assert objective.level == "token"
    arguments = rows_call("policy_loss", logits, token, softmax, grad_logits)
    shapes = ((len(SUMMED_METRICS), token.numel()), (), (len(METRICS),))
    out = [torch.empty(shape, dtype=torch.float32, device=logits.device) for shape in shapes]
    with torch.cuda.device_of(logits):
        call(
            "policy_loss",
            PolicyLoss(
                arguments, *map(address, rows), *map(address, out), GATE_INDEX[objective.gate],
                KL_INDEX[objective.kl], (ctypes.c_double * COEFFICIENTS)(*objective.numbers),
            ),
        )  # fmt: skip
    return out[1], out[2]


def as_rows(tensor: Tensor) -> Tensor:
    """Returns a view of three or more dimensions, as few as the strides allow, the last contiguous.

    >>> as_rows(torch.zeros(4, 6, 10)[:, 1:, 2:].transpose(0, 1)).shape
    torch.Size([4, 5, 8])
    >>> as_rows(torch.zeros(6)[::2]).shape
    torch.Size([1, 3, 1])
    """
    strides = sorted(zip(tensor.stride(), tensor.shape), reverse=True)
    merged: list[tuple[int, int]] = []
    for stride, size in strides:
        if merged and merged[-1][0] == stride * size:
            size *= merged.pop()[1]
        if size != 1:
            merged.append((stride, size))
    if not merged or merged[-1][0] != 1:
        merged.append((1, 1))
    merged[:0] = [(0, 1)] * (3 - len(merged))
    return tensor.as_strided([size for _, size in merged], [stride for stride, _ in merged])


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor in place; a factor of exactly 1 touches nothing."""
    x, factor = as_rows(tensor), factor.to(torch.float32)
    if x.ndim > 3:
        for part in x:
            scale_(part, factor)
        return
    with torch.cuda.device_of(x):
        call("scale", Scale(*stream_and_device(x), grid(x), address(factor)))


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor in a buffer of its own: whether it is 1 only the device knows."""
    out = tensor.clone()
    scale_(out, factor)
    return out
