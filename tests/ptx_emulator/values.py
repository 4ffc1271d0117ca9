# SPDX-License-Identifier: Apache-2.0
"""Bits of registers and the numbers they stand for.

A register holds unsigned integers of its width, or booleans if it is a predicate: one NumPy scalar
if all threads have the same, else a vector with an element for each thread.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
FLOAT = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
# What a register holds before it is written: NaN, and no address.
POISON = {
    1: np.uint8(0xA5),
    2: np.uint16(0x7FA5),
    4: np.uint32(0x7FA5A5A5),
    8: np.uint64(0x7FF4A5A5A5A5A5A5),
}
SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


@cache
def size_of(kind: str) -> int:
    """Returns the bytes of a PTX type, 0 for a predicate.

    >>> size_of("bf16"), size_of("s64"), size_of("f16x2"), size_of("pred")
    (2, 8, 4, 0)
    """
    if kind == "pred":
        return 0
    width, _, pair = re.sub("^[a-z]+", "", kind).partition("x")
    return int(width) // 8 * int(pair or 1)


@cache
def number_of(kind: str) -> Callable[[Any], Any]:
    """Returns the function from bits to the numbers that they are in a PTX type.

    Numbers of 16 bits become float32, in which all of them are exact.
    """
    if kind == "pred":
        return lambda x: x
    unsigned = UNSIGNED[size_of(kind)]
    if kind == "bf16":
        return lambda x: (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "f16":
        return lambda x: x.astype(unsigned).view(np.float16).astype(np.float32)
    dtype = FLOAT.get(kind) or (SIGNED[size_of(kind)] if kind[0] == "s" else unsigned)
    return lambda x: (x if x.dtype == unsigned else x.astype(unsigned)).view(dtype)


def bits_of(x: Any) -> Any:
    """Returns the bits of numbers; booleans remain what they are."""
    x = np.asarray(x)
    return x if x.dtype == bool else x.view(UNSIGNED[x.dtype.itemsize])


def to_bfloat16(x: Any) -> Any:
    """Returns the bits of float32 numbers rounded to bfloat16: to nearest, ties to even.

    >>> [hex(n) for n in to_bfloat16(np.float32([1.0, 1.00390625, 1.01171875, float("nan")]))]
    ['0x3f80', '0x3f80', '0x3f82', '0x7fff']
    """
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def to_float16(x: Any) -> Any:
    """Returns the bits of numbers rounded to float16; of every NaN the same.

    >>> [hex(n) for n in to_float16(np.float32([1.0, 65519.9, float("nan")]))]
    ['0x3c00', '0x7bff', '0x7fff']
    """
    x = np.asarray(x)
    return np.where(np.isnan(x), np.uint16(0x7FFF), bits_of(x.astype(np.float16)))


def flushed(x: Any) -> Any:
    """Returns float32 numbers, 0 of their sign in place of those that are not normal."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def extended(x: Any, kind: str, size: int) -> Any:
    """Returns the bits of numbers of a type in registers of so many bytes, their sign spread.

    >>> hex(extended(np.uint8(0x80), "s8", 2)), hex(extended(np.uint8(0x80), "u8", 2))
    ('0xff80', '0x80')
    """
    if kind[0] != "s":
        return x.astype(UNSIGNED[size])
    return x.view(SIGNED[x.dtype.itemsize]).astype(SIGNED[size]).view(UNSIGNED[size])


def literal(text: str, size: int) -> Any:
    """Returns the bits of a number written in PTX, or None if it is none.

    >>> literal("0f3F800000", 4).view(np.float32), literal("-1", 2), literal("%r1", 4)
    (np.float32(1.0), np.uint16(65535), None)
    """
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return np.uint32(int(text[2:], 16))
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return np.uint64(int(text[2:], 16))
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
        return UNSIGNED[size](int(text.rstrip("U"), 0) % (1 << 8 * size))
    return None
