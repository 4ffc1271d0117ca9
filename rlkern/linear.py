# SPDX-License-Identifier: Apache-2.0
"""Fused linear: log-probabilities and losses from hidden states and a head, without the logits."""

import sys
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlkern.backends import autocast_dtype
from rlkern.objective import LossArguments, LossOutput, checked_arguments
from rlkern.ops import TokenLogprob, check, linear_sharded
from rlkern.ops.linear_head import Head, default_wave
from rlkern.ops.linear_policy_loss import linear_policy_loss as raw_policy_loss
from rlkern.ops.linear_token_logprob import forward as raw_token_logprob
from rlkern.ops.policy_loss import token_objective as raw_token_objective
from rlkern.ops.rows import make_softmax, mask_vector, row_vector, token_vector
from rlkern.ops.sharded import Slice, slice_of
from rlkern.reference.token_logprob import Scored, Softmax


class Lora(NamedTuple):
    """A low-rank addition to a head: logits += scale·(hidden·aᵀ)·bᵀ; a (R, H), b (V, R).

    PEFT's scale is lora_alpha / r (lora_alpha / √r with rsLoRA).
    """

    a: Tensor
    b: Tensor
    scale: float


class _Door(NamedTuple):
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


def _checked_head(
    op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, lora: Lora | None,
    wave: int | None, group: ProcessGroup | None,
) -> _Door:  # fmt: skip
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
    return _Door(hidden.reshape(-1, H), head, grid if part is None else part.whole, wave, part)


def _softmax(op, door: _Door, shape, mask, temperature, softcap, keep, logit_scale) -> Softmax:
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


def _scored(door: _Door, token: Tensor, mask: Tensor | None, softmax: Softmax) -> Scored:
    """Returns what is left of the rows, each (N,)."""
    token, mask = token.flatten(), None if mask is None else mask.flatten()
    if door.part is not None:
        return linear_sharded.score(
            door.part, door.hidden, door.head, token, mask, softmax, door.wave
        )
    return Scored(*raw_token_logprob(door.hidden, *door.head, token, mask, *softmax, door.wave))


def linear_token_logprob(
    hidden: Tensor,
    weight: Tensor,
    token: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    logit_scale: float = 1.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    keep: Tensor | None = None,
    wave: int | None = None,
    group: ProcessGroup | None = None,
) -> TokenLogprob:
    """Returns what token_logprob(hidden·weightᵀ + bias, token) does, without storing the logits.

        logits = logit_scale·(hidden·weightᵀ + lora.scale·(hidden·lora.aᵀ)·lora.bᵀ + bias)

    A wave of rows is scored at a time; the backward makes its logits again and puts their gradient
    in their place: 8·N·H·V operations with all gradients, 6 with a frozen head. hidden[b, t] scores
    token[b, t]: nothing is shifted here.

    Arguments
        hidden       (..., H) float, of the weight's dtype or narrower
        weight       (V, H) float16, bfloat16, float32 or float64: the head's, as nn.Linear has it
        token        (...) int64 or int32; any value where mask is False
        bias         (V,) of the weight's dtype
        lora         Lora(a, b, scale), of the weight's dtype: never merged
        logit_scale  a number > 0 (Cohere's logit_scale, 1 / Granite's logits_scaling)
        temperature, softcap, mask, keep  as in rlkern.token_logprob; rows that do not count are
                     left out of every product (on a GPU their number is waited for)
        wave         rows of logits held at a time, by default 320 MiB of them (512 on a GPU)
        group        the process group whose ranks hold the vocabulary in slices, in rank order and
                     of any size above 0: weight, bias and lora.b are this rank's rows of the head,
                     token and keep are ids of the whole vocabulary; the rest is the same on all
    Returns
        TokenLogprob(logprob, entropy, lse, sum_pi_squared), each (...) float32 (float64 for
        float64)
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device, or a DTensor
        RuntimeError           on double backward
    Gradient
        to hidden, weight, bias, lora.a and lora.b, each made only where it is needed; those of
        the head are summed over waves in float32. With group, hidden and lora.a get the sum over
        the ranks, provided that all make the same loss

    >>> hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]]).log1p()
    >>> out = linear_token_logprob(hidden, weight, torch.tensor([1]))
    >>> round(out.logprob.exp().item(), 4)
    0.8
    """
    op = "linear_token_logprob"
    door = _checked_head(op, hidden, weight, bias, lora, wave, group)
    shape = hidden.shape[:-1]
    check.like(op, "token", token, shape, hidden, check.INTEGERS)
    if mask is not None:
        check.like(op, "mask", mask, shape, hidden, (torch.bool,))
    check.token_values(op, token, mask, door.grid.shape[-1])
    softmax = _softmax(op, door, shape, mask, temperature, softcap, keep, logit_scale)
    scored = _scored(door, token_vector(token, door.grid), mask_vector(mask, door.grid), softmax)
    lse = scored.row_max + scored.log_sum
    results = (scored.logprob, scored.entropy, lse, scored.sum_pi_squared)
    return TokenLogprob(*(x.reshape(shape) for x in results))


def linear_policy_loss(
    hidden: Tensor,
    head_weight: Tensor,
    token: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    logit_scale: float = 1.0,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    correction: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    keep: Tensor | None = None,
    algorithm: str = "grpo",
    weight: Tensor | None = None,
    wave: int | None = None,
    group: ProcessGroup | None = None,
    **coefficients: float | str,
) -> LossOutput:
    """Returns what policy_loss(hidden·head_weightᵀ + bias, ...) does, without storing the logits.

    All gradients are made in the forward, while a wave's logits are there: 6·N·H·V operations, 4
    with a frozen head. Where the ratio is a sequence's (GSPO), waves are of whole sequences; where
    one is longer than a wave, or the vocabulary is split (group), the logits are made twice (8 and
    6). The loss is that of the logits path on the same logits, to the last bit.

    Arguments
        hidden, head_weight, bias, lora, logit_scale, wave, group  as in linear_token_logprob
        the others   as in rlkern.policy_loss; weight (B, T) is that of the tokens
    Returns
        LossOutput(loss, metrics)
    Raises
        as both
    Gradient
        to hidden, head_weight, bias, lora.a and lora.b: to those that require it when this is
        called

    >>> hidden = torch.zeros(1, 1, 1, requires_grad=True)
    >>> one, two = torch.tensor([1.0]), torch.tensor([[1.0], [-1.0]])
    >>> out = linear_policy_loss(hidden, two, torch.tensor([[0]]), one, torch.tensor([[True]]))
    >>> out.loss.backward()
    >>> hidden.grad.tolist()
    [[[-1.0]]]
    """
    op = "linear_policy_loss"
    door = _checked_head(op, hidden, head_weight, bias, lora, wave, group)
    shape = hidden.shape[:-1]
    check.like(op, "token", token, shape, hidden, check.INTEGERS)
    given = LossArguments(
        advantage, mask, old_logprob, ref_logprob, correction, cu_seqlens, weight, algorithm,
        coefficients,
    )  # fmt: skip
    checked = checked_arguments(op, hidden, shape, given)
    check.token_values(op, token, mask, door.grid.shape[-1])
    rows = [None if x is None else row_vector(x, door.grid) for x in checked.rows]
    softmax = _softmax(op, door, shape, mask, temperature, softcap, keep, logit_scale)
    token = token_vector(token, door.grid)
    if door.part is not None:
        counted = row_vector(checked.rows.weight, door.grid) != 0
        scored = _scored(door, token, counted, softmax)
        logprob, entropy = (x.reshape(token.shape) for x in (scored.logprob, scored.entropy))
        loss, metrics, _, _ = raw_token_objective(logprob, entropy, *rows, *checked.operator_form())
        return LossOutput(loss, metrics.detach())
    sources = (hidden, *door.head[:4])
    recording = torch.is_grad_enabled()
    wants = [recording and x is not None and x.requires_grad for x in sources]
    loss, metrics, *_ = raw_policy_loss(
        door.hidden, *door.head, token, *rows, *softmax, *checked.operator_form(), door.wave, wants
    )
    return LossOutput(loss, metrics.detach())
