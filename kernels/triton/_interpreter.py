# SPDX-License-Identifier: Apache-2.0
"""Makes Triton's interpreter round as GPUs do.

A GPU rounds float32 to bfloat16 to nearest, ties to even; the interpreter of Triton 3.6 to 3.9 cuts
the lower half off, an error twice as large and always towards 0.
"""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast = InterpreterBuilder.cast_impl


def nearest_bfloat16(x: np.ndarray) -> np.ndarray:
    """Returns the bits (uint16) of float32 numbers rounded to bfloat16.

    >>> nearest_bfloat16(np.float32([1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-8])).tolist()
    [16256, 16256, 16258]
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    # Half a unit in the last place, less one bit where the number kept is even: ties go there.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16).reshape(x.shape)


def _cast_rounded(self, value, dtype):
    if value.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
        return TensorHandle(nearest_bfloat16(value.data), tl.bfloat16)
    return _cast(self, value, dtype)


def round_as_gpus() -> None:
    """Changes the interpreter of this process; the second time nothing more."""
    InterpreterBuilder.cast_impl = _cast_rounded
