# SPDX-License-Identifier: Apache-2.0
"""How tensors are handed to rlkern._C: as addresses."""

import torch
from torch import Tensor

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
