# SPDX-License-Identifier: Apache-2.0
"""Large memory that arrives in few page faults."""

import ctypes
import mmap

import torch
from torch import Tensor

_HUGE = 1 << 21
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)


def announce(x: Tensor) -> Tensor:
    """Returns x, having said that its memory will be written as a whole.

    Fresh memory of a gradient costs more in page faults than the loss: in pages of 2 MiB they are
    few. It is advice, to Linux, about host memory: elsewhere, and where it is not taken, nothing
    changes. What is in the memory does not either.
    """
    if x.numel() * x.element_size() < _HUGE:
        return x
    begin = -(-x.data_ptr() // _HUGE) * _HUGE
    end = (x.data_ptr() + x.numel() * x.element_size()) // _HUGE * _HUGE
    if _MADV_HUGEPAGE is not None and x.is_cpu and begin < end:
        where, size = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
        ctypes.CDLL(None).madvise(where, size, _MADV_HUGEPAGE)
    return x


def fresh(shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
    """Returns uninitialised contiguous memory of this shape and like's dtype and device.

    >>> fresh((2, 3), torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.bfloat16
    """
    return announce(torch.empty(shape, dtype=like.dtype, device=like.device))
