# SPDX-License-Identifier: Apache-2.0
"""The checked hidden states and head of the operations that never store the logits."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlkern.backends import on_host
from rlkern.backends.eager.token_logprob import Softmax
from rlkern.ops import _check as check
from rlkern.ops._linear_head import LEAST_ROWS, Head
from rlkern.ops._rows import make_softmax
from rlkern.ops._sharded import Slice, slice_of

# Bytes of logits held at a time, enough that a product is limited by arithmetic.
WAVE_BYTES_ON_HOST = 320 << 20
WAVE_BYTES_ON_DEVICE = 512 << 20


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
    logit_scale: float
    wave: int
    part: Slice | None  # of the vocabulary, where ranks share it


def default_wave(weight: Tensor, rows: int) -> int:
    """Returns how many rows of logits of a head to hold at a time, of so many rows in all.

    The gradient of a 16-bit head is summed over waves in float32, which takes 4 bytes an element,
    read and written for each wave. On a device, where the logits of all rows take no more memory
    than that sum, they are one wave and there is no sum.

    >>> head = torch.empty(151936, 1, dtype=torch.bfloat16)
    >>> default_wave(head, 8192)
    1104
    >>> head = torch.empty(151936, 4096, dtype=torch.bfloat16, device="meta")
    >>> default_wave(head, 8192), default_wave(head.requires_grad_(), 8192)
    (1760, 8192)
    """
    (V, H), size, host = weight.shape, weight.element_size(), on_host(weight.device)
    budget = WAVE_BYTES_ON_HOST if host else WAVE_BYTES_ON_DEVICE
    wave = max(LEAST_ROWS, budget // (V * size) // LEAST_ROWS * LEAST_ROWS)
    summed = size == 2 and weight.requires_grad and torch.is_grad_enabled()
    if not host and summed and rows <= wave + 2 * H:
        return max(wave, rows)
    return wave


def _as_layers_take(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors as a linear layer would take them: under autocast in its dtype."""
    device = given["weight"].device.type
    if not torch.is_autocast_enabled(device):
        return given
    dtype = torch.get_autocast_dtype(device)
    return {name: x if x.dtype == torch.float64 else x.to(dtype) for name, x in given.items()}


def _checked_tensors(
    op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, lora: Lora | None
) -> dict[str, Tensor]:
    """Returns the tensors that are there, by the names that messages have for them."""
    if lora is not None and not isinstance(lora, Lora):
        raise TypeError(f"{op}: lora must be Lora(a, b, scale), got {check.describe(lora)}")
    given = {"hidden": hidden, "weight": weight}
    if bias is not None:
        given["bias"] = bias
    if lora is not None:
        given |= {"lora.a": lora.a, "lora.b": lora.b}
    check.tensors(op, given, check.FLOATS)
    given = _as_layers_take(given)
    hidden, weight = given["hidden"], given["weight"]
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
    rank = given["lora.b"].shape[-1:] if lora is not None else ()
    shapes = {"bias": (V,), "lora.b": (V, *rank), "lora.a": (*rank, H)}
    for name, shape in shapes.items():
        if name in given:
            check.like(op, name, given[name], torch.Size(shape), weight, (weight.dtype,))
    return given


def checked_head(
    op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, lora: Lora | None,
    logit_scale: float, wave: int | None, group: ProcessGroup | None,
) -> LinearArguments:  # fmt: skip
    """Returns the hidden states and the head as the operators take them."""
    given = _checked_tensors(op, hidden, weight, bias, lora)
    hidden, weight = given["hidden"], given["weight"]
    numbers = {"logit_scale": logit_scale, "lora.scale": 1.0 if lora is None else lora.scale}
    scale, lora_scale = check.numbers(op, numbers)
    if scale <= 0:
        raise ValueError(f"{op}: logit_scale must be greater than 0, got {logit_scale}")
    head = Head(weight, given.get("bias"), given.get("lora.a"), given.get("lora.b"), lora_scale)
    if wave is None:
        wave = default_wave(weight, hidden.shape[:-1].numel())
    if not isinstance(wave, int) or wave < 1:
        raise ValueError(f"{op}: wave must be at least 1 row, got {wave!r}")
    (V, H), shape = weight.shape, hidden.shape[:-1]
    rows = shape if len(shape) == 2 else (1, shape.numel())
    grid = weight.detach().new_empty(()).expand(*rows, V)
    part = None if group is None else slice_of(op, grid, group)
    grid = grid if part is None else part.whole
    return LinearArguments(hidden.reshape(-1, H), head, grid, scale, wave, part)


def checked_softmax(op, door: LinearArguments, shape, mask, temperature, softcap, keep) -> Softmax:
    """Returns the distribution of flat rows, the scale of the logits folded in.

    softcap·tanh(scale·x/softcap)/T = softcap′·tanh(x/softcap′)/T′ with softcap′ = softcap/scale and
    T′ = T/scale: no kernel has to know of it.
    """
    if door.logit_scale != 1:
        temperature = temperature / door.logit_scale
        softcap = None if softcap is None else softcap / door.logit_scale
    inv_temperature, cap, ids = make_softmax(op, door.grid, shape, mask, temperature, softcap, keep)
    return Softmax(
        None if inv_temperature is None else inv_temperature.flatten(),
        cap,
        None if ids is None else ids.flatten(0, 1),
    )
