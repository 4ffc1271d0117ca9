# SPDX-License-Identifier: Apache-2.0
"""How kernels are declared and handed their arguments, so that few variants of each are compiled.

Arguments that belong together travel as named tuples; a field that is None, a function or a
tl.constexpr is known when the kernel is compiled. Inside a tuple Triton compiles a variant for each
alignment of a pointer and each kind of integer (1, a multiple of 16, more than 32 bits), whatever
do_not_specialize says: so vectors are aligned before they enter one, and sizes and strides stay
outside.
"""

import inspect
from typing import Any, TypeVar

import triton
import triton.language as tl
from torch import Tensor

Argument = TypeVar("Argument")


def kernel(function: Any) -> Any:
    """Returns the Triton kernel of a function; no value of an annotated integer makes a variant."""
    parameters = inspect.signature(function).parameters.items()
    sizes = [name for name, p in parameters if p.annotation in (tl.int32, tl.int64)]
    return triton.jit(function, do_not_specialize=sizes)


def aligned(argument: Argument) -> Argument:
    """Returns a tensor or named tuple; tensors that begin at no multiple of 16 bytes are copied.

    >>> import torch
    >>> aligned(torch.arange(4.0)[1:]).data_ptr() % 16
    0
    """
    if isinstance(argument, Tensor):
        return argument.clone() if argument.data_ptr() % 16 else argument
    if isinstance(argument, tuple) and any(
        isinstance(x, Tensor) and x.data_ptr() % 16 for x in argument
    ):
        return type(argument)._make(map(aligned, argument))  # type: ignore[attr-defined]
    return argument
