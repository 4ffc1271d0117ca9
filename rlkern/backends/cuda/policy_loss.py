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


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies tensor by the scalar factor in place; a factor of exactly 1 touches nothing."""
    x = tensor if tensor.ndim == 3 else tensor.view(1, 1, -1)
    factor = factor.to(torch.float32)
    with torch.cuda.device_of(x):
        call("scale", Scale(*stream_and_device(x), grid(x), address(factor)))


def scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns tensor · factor in a buffer of its own: whether it is 1 only the device knows."""
    out = tensor.clone()
    scale_(out, factor)
    return out
