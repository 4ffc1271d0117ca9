# SPDX-License-Identifier: Apache-2.0
"""How tensors are handed to rlkern._C: as addresses."""

import torch
from torch import Tensor

from rlkern.backends.eager.gates import GATE_INDEX
from rlkern.backends.eager.kl import KL_INDEX
from rlkern.backends.eager.levels import LEVEL_INDEX
from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.eager.token_objective import Objective

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def address(x: Tensor | None) -> int:
    """Returns where a tensor's elements begin, 0 for None."""
    return 0 if x is None else x.data_ptr()


def addresses(*tensors: Tensor | None) -> list[int]:
    """Returns the address of each."""
    return [address(x) for x in tensors]


def grid(x: Tensor) -> tuple[int, ...]:
    """Returns a (B, T, V) tensor as C++ takes it: address, dtype, sizes, strides of the rows."""
    return (x.data_ptr(), DTYPES[x.dtype], *x.shape, x.stride(0), x.stride(1))


def softmax_arguments(softmax: Softmax) -> tuple[int, float, int, int]:
    """Returns a row's distribution as C++ takes it."""
    width = 0 if softmax.keep is None else softmax.keep.shape[-1]
    return address(softmax.inv_temperature), softmax.softcap, address(softmax.keep), width


def objective_arguments(objective: Objective) -> tuple:
    """Returns an objective as C++ takes it: names become their places in the reference's tables."""
    gate, level, kl, *rest = objective
    return GATE_INDEX[gate], LEVEL_INDEX[level], KL_INDEX[kl], *rest
