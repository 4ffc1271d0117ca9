# SPDX-License-Identifier: Apache-2.0
"""The checked hidden states and head of the operations that never store the logits."""

import sys
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlkern.backends import autocast_dtype
from rlkern.backends.eager.token_logprob import Softmax
from rlkern.ops import _check as check
from rlkern.ops._linear_head import Head, default_wave
from rlkern.ops._rows import make_softmax
from rlkern.ops._sharded import Slice, slice_of


class Lora(NamedTuple):
    """A low-rank addition to a head: logits += scale·(hidden·aᵀ)·bᵀ; a (R, H), b (V, R).

    PEFT's scale is lora_alpha / r (lora_alpha / √r with rsLoRA).
    """

    a: Tensor
    b: Tensor
    scale: float


class LinearArguments(NamedTuple):
    """The checked hidden states and head."""

    hidden: Tensor  # (N, H)
    head: Head
    grid: Tensor  # (B, T, V): the logits there would be, of no memory
    wave: int
    part: Slice | None  # of the vocabulary, where ranks share it


def _as_layers_take(x: Tensor) -> Tensor:
    """Returns x as a linear layer would take it: under autocast in its dtype."""
    dtype = autocast_dtype(x.device)
    return x if dtype is None or x.dtype == torch.float64 else x.to(dtype)


def _is_spread(x: Tensor) -> bool:
    """Returns whether x is a DTensor."""
    # Who has one has imported this; doing it here would make `import rlkern` eight times as long.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def _plain(op: str, name: str, x: object) -> Tensor:
    found = check.tensor(op, name, x, check.FLOATS)
    if _is_spread(found):
        raise TypeError(
            f"{op}: {name} must be a plain tensor, got a DTensor {tuple(found.shape)} spread over "
            "ranks: gather it (FSDP2: model.unshard(); else .full_tensor()), or pass "
            ".to_local() of a weight split by rows together with group="
        )
    return _as_layers_take(found)


def _lora(op: str, lora: Lora | None, weight: Tensor) -> tuple[Tensor | None, Tensor | None, float]:
    if lora is None:
        return None, None, 1.0
    if not isinstance(lora, Lora):
        raise TypeError(f"{op}: lora must be Lora(a, b, scale), got {check.describe(lora)}")
    a, b = _plain(op, "lora.a", lora.a), _plain(op, "lora.b", lora.b)
    (V, H), rank = weight.shape, b.shape[-1:]
    check.like(op, "lora.b", b, torch.Size((V, *rank)), weight, (weight.dtype,))
    check.like(op, "lora.a", a, torch.Size((*rank, H)), weight, (weight.dtype,))
    return a, b, check.number(op, "lora.scale", lora.scale)


def checked_head(
    op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, lora: Lora | None,
    wave: int | None, group: ProcessGroup | None,
) -> LinearArguments:  # fmt: skip
    hidden, weight = _plain(op, "hidden", hidden), _plain(op, "weight", weight)
    if weight.ndim != 2 or weight.shape[0] == 0:
        raise ValueError(f"{op}: weight must be (V, H) with V > 0, got {check.describe(weight)}")
    V, H = weight.shape
    if hidden.ndim < 2 or hidden.shape[-1] != H or hidden.device != weight.device:
        raise ValueError(
            f"{op}: hidden must be (..., {H}) on {weight.device} as weight {tuple(weight.shape)} "
            f"takes it, got {check.describe(hidden)}"
        )
    if torch.promote_types(hidden.dtype, weight.dtype) != weight.dtype:
        raise TypeError(
            f"{op}: hidden must be {weight.dtype} like weight, or narrower, got {hidden.dtype}"
        )
    if bias is not None:
        bias = _plain(op, "bias", bias)
        check.like(op, "bias", bias, torch.Size((V,)), weight, (weight.dtype,))
    head = Head(weight, bias, *_lora(op, lora, weight))
    if wave is None:
        wave = default_wave(weight)
    if not isinstance(wave, int) or wave < 1:
        raise ValueError(f"{op}: wave must be at least 1 row, got {wave!r}")
    shape = hidden.shape[:-1]
    rows = shape if len(shape) == 2 else (1, shape.numel())
    grid = weight.detach().new_empty(()).expand(*rows, V)
    part = None if group is None else slice_of(op, grid, group)
    return LinearArguments(
        hidden.reshape(-1, H), head, grid if part is None else part.whole, wave, part
    )


def checked_softmax(
    op, door: LinearArguments, shape, mask, temperature, softcap, keep, logit_scale
) -> Softmax:
    """Returns the distribution of rows, the scale of the logits folded in.

    softcap·tanh(scale·x/softcap)/T = softcap′·tanh(x/softcap′)/T′ with softcap′ = softcap/scale and
    T′ = T/scale: no kernel has to know of it.
    """
    scale = check.number(op, "logit_scale", logit_scale)
    if scale <= 0:
        raise ValueError(f"{op}: logit_scale must be greater than 0, got {logit_scale}")
    if scale != 1:
        temperature = temperature / scale
        softcap = None if softcap is None else softcap / scale
    softmax = make_softmax(op, door.grid, shape, mask, temperature, softcap, keep)
    flat = (None if x is None else x.flatten(0, 1) for x in (softmax.inv_temperature, softmax.keep))
    inv_temperature, ids = flat
    return Softmax(inv_temperature, softmax.softcap, ids)
