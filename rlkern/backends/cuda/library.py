# SPDX-License-Identifier: Apache-2.0
"""The shared library of the CUDA kernels: loaded with ctypes, called with structs of addresses.

It is no extension module and includes no torch header: one binary serves every torch and Python.
RLKERN_CUDA_LIBRARY names another one, as the tests do to run the same kernels on the CPU.
"""

import ctypes
import os
from ctypes import Structure, c_char_p, c_double, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.eager.token_objective import Rows

BUILT = Path(__file__).resolve().parents[2] / "_cuda.so"
COEFFICIENTS = 9  # of Objective.numbers
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Grid(Structure):
    """Rows in memory; the structs are those of csrc/cuda/arguments.h, field by field."""

    _fields_ = [
        *_fields(c_void_p, "data"),
        *_fields(c_int64, "dtype rows time vocab stride_batch stride_time"),
    ]


class Call(Structure):
    """Rows as every call takes them."""

    _fields_ = [
        ("stream", c_void_p),
        ("device", c_int64),
        ("logits", Grid),
        ("grad", Grid),
        *_fields(c_void_p, "token inv_temperature"),
        ("softcap", c_double),
    ]


class PolicyLoss(Structure):
    """The single pass."""

    _fields_ = [
        ("call", Call),
        *_fields(c_void_p, " ".join(Rows._fields)),
        *_fields(c_void_p, "statistics loss metrics"),
        *_fields(c_int64, "gate kl"),
        ("coefficients", c_double * COEFFICIENTS),
    ]


class TokenLogprob(Structure):
    """The forward."""

    _fields_ = [
        ("call", Call),
        *_fields(c_void_p, "mask logprob entropy row_max log_sum sum_pi_squared"),
    ]


class TokenLogprobBackward(Structure):
    """The backward."""

    _fields_ = [
        ("call", Call),
        *_fields(c_void_p, "mask entropy row_max log_sum grad_logprob grad_entropy grad_lse"),
    ]


class Scale(Structure):
    """A factor, and what it multiplies."""

    _fields_ = [("stream", c_void_p), ("device", c_int64), ("x", Grid), ("factor", c_void_p)]


STRUCTS = (PolicyLoss, TokenLogprob, TokenLogprobBackward, Scale)


@cache
def load_library() -> ctypes.CDLL:
    """Returns the loaded library; raises OSError if it is not there or is another version's."""
    path = os.environ.get("RLKERN_CUDA_LIBRARY") or str(BUILT)
    loaded = ctypes.CDLL(path)
    loaded.rlkern_cuda_error.restype = c_char_p
    loaded.rlkern_cuda_error.argtypes = [c_int]
    loaded.rlkern_cuda_major.argtypes = [c_int64]
    loaded.rlkern_cuda_shape.argtypes = [c_int64, c_int64, c_int, c_void_p]
    sizes = (c_int64 * len(STRUCTS))()
    loaded.rlkern_cuda_sizes(sizes)
    if list(sizes) != [ctypes.sizeof(struct) for struct in STRUCTS]:
        raise OSError(f"{path} was built from other sources than this rlkern: build it again")
    return loaded


def error_sentence(error: int) -> str:
    """Returns what the library says of an error code."""
    said = load_library().rlkern_cuda_error(error).decode()
    return said if error < 0 else f"CUDA error {error}: {said}"


def call(name: str, arguments: Structure) -> None:
    """Launches an operation; raises RuntimeError with CUDA's own words if that fails."""
    error = getattr(load_library(), f"rlkern_cuda_{name}")(ctypes.byref(arguments))
    if error:
        raise RuntimeError(f"{name}: {error_sentence(error)}")


def address(x: Tensor | None) -> int | None:
    """Returns where a tensor's elements begin, None for None."""
    return None if x is None else x.data_ptr()


def grid(x: Tensor | None) -> Grid:
    """Returns a (B, T, V) tensor as C++ takes it; an empty grid for None."""
    if x is None:
        return Grid()
    B, T, V = x.shape
    return Grid(x.data_ptr(), DTYPES[x.dtype], B * T, T, V, x.stride(0), x.stride(1))


def stream_and_device(x: Tensor) -> tuple[int | None, int]:
    """Returns the stream that torch would use for this tensor, and the index of its device."""
    if load_library().rlkern_cuda_emulated():
        return None, int(os.environ.get("RLKERN_CUDA_EMULATED_DEVICE", "0"))
    return torch.cuda.current_stream(x.device).cuda_stream, x.get_device()


def rows_call(
    op: str, logits: Tensor, token: Tensor, softmax: Softmax, grad_logits: Tensor | None
) -> Call:
    """Returns what every call over rows hands over; raises for what only other backends serve."""
    if softmax.keep is not None:
        raise NotImplementedError(
            f"{op}: the cuda backend takes no kept sets (keep=), the triton backend does"
        )
    return Call(
        *stream_and_device(logits), grid(logits), grid(grad_logits), address(token),
        address(softmax.inv_temperature), softmax.softcap,
    )  # fmt: skip
