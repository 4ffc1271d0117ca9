# SPDX-License-Identifier: Apache-2.0
"""Makes Triton's interpreter round float32 to bfloat16 as a GPU does: it drops the low half."""

import functools
import sys
from typing import Any


def _nearest(x: Any) -> Any:
    """Returns the bits of the nearest bfloat16 of each float32 of an array, ties to even.

    >>> import numpy
    >>> [hex(n) for n in _nearest(numpy.float32([1.0, 1.00390625, 1.01171875, float("nan")]))]
    ['0x3f80', '0x3f80', '0x3f82', '0x7fc0']
    """
    import numpy

    bits = numpy.ascontiguousarray(x).view(numpy.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return numpy.where(numpy.isnan(x), 0x7FC0, rounded).astype(numpy.uint16)


def round_to_nearest() -> None:
    """Does it once, if the interpreter is in use."""
    module: Any = sys.modules.get("triton.runtime.interpreter")
    if module is None or hasattr(module._convert_float, "__wrapped__"):
        return
    truncating = module._convert_float

    @functools.wraps(truncating)
    def convert(x, source, target, mode):
        if (source.name, target.name) == ("fp32", "bf16"):
            return _nearest(x)
        return truncating(x, source, target, mode)

    module._convert_float = convert
