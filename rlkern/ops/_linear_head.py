# SPDX-License-Identifier: Apache-2.0
"""A linear head whose logits exist for a wave of rows at a time: made, scored, and differentiated.

The size of a wave is the only memory knob. All waves share one buffer, in which the gradient takes
the place of the logits.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends import implementation, on_host
from rlkern.backends.eager.token_logprob import Scored, Softmax, Statistics, Upstream
from rlkern.backends.memory import announce, fresh

# Below this many rows a library takes another kernel, whose last bits differ.
LEAST_ROWS = 16
# Columns of a 16-bit gradient that are widened at a time.
_BLOCK = 8192


class Head(NamedTuple):
    """logits = hidden·weightᵀ + lora_scale·(hidden·lora_aᵀ)·lora_bᵀ + bias.

    weight (V, H), bias (V,), lora_a (R, H), lora_b (V, R): of one dtype, which the logits have too.
    """

    weight: Tensor
    bias: Tensor | None = None
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    lora_scale: float = 1.0

    def write_logits(self, hidden: Tensor, out: Tensor) -> None:
        """Writes the logits of (n, H) hidden states, in the weight's dtype, into out (n, V)."""
        if self.bias is None:
            torch.mm(hidden, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, hidden, self.weight.t(), out=out)
        if self.lora_a is not None and self.lora_b is not None:
            out.addmm_(hidden @ self.lora_a.t(), self.lora_b.t(), alpha=self.lora_scale)


class Waves:
    """The counted rows of hidden states in waves, and the buffer their logits take turns in.

    Rows that do not count never reach a product: the others are copied together where there are
    any. How many there are is data, so with a mask a GPU is waited for. token and softmax are of
    all rows, flat.
    """

    def __init__(
        self, head: Head, hidden: Tensor, token: Tensor, mask: Tensor | None, softmax: Softmax,
        wave: int,
    ):  # fmt: skip
        self.head, self.wave = head, wave
        self.rows = None if mask is None else mask.reshape(-1).nonzero().flatten()
        if self.rows is not None and self.rows.numel() == hidden.shape[0]:
            self.rows = None
        self.hidden, self.token, inv_temperature, keep = self.take(
            (hidden, token, softmax.inv_temperature, softmax.keep)
        )
        self.softmax = Softmax(inv_temperature, softmax.softcap, keep)
        self.count = self.hidden.shape[0]
        room = max(LEAST_ROWS, min(wave, self.count))
        self._buffer = fresh((room, head.weight.shape[0]), head.weight)
        self._held: tuple[int, int] | None = None

    def take(self, each: Iterable[Tensor | None]) -> list:
        """Returns the counted rows of each (N, ...)."""
        if self.rows is None:
            return list(each)
        return [None if x is None else x.index_select(0, self.rows) for x in each]

    def put(self, into: Tensor, x: Tensor) -> None:
        """Writes one row of x for each counted row into (N, ...)."""
        if self.rows is None:
            into.copy_(x)
        else:
            into.index_copy_(0, self.rows, x.to(into.dtype))

    def spans(self) -> list[tuple[int, int]]:
        """Returns (begin, end) of each wave."""
        begins = range(0, self.count, self.wave)
        return [(begin, min(begin + self.wave, self.count)) for begin in begins]

    def score(self, begin: int, end: int) -> Scored:
        """Returns what is left of the rows of a wave, each (1, n)."""
        logits = self._logits(begin, end).unsqueeze(0)
        return implementation("token_logprob", logits)(logits, *self._given(begin, end))

    def score_with_companions(self, begin: int, end: int) -> tuple[Tensor, ...]:
        """Returns what is left of the rows of a wave, then their companions, each (1, n)."""
        logits = self._logits(begin, end).unsqueeze(0)
        serve = implementation("token_logprob_companions", logits)
        scored, companions = serve(logits, *self._given(begin, end))
        return *scored, *companions

    def overwrite(self, begin: int, end: int, statistics: Statistics, upstream: Upstream) -> Tensor:
        """Returns the gradient (n, V) of a wave's logits, written over them."""
        logits = self._logits(begin, end).unsqueeze(0)
        self._held = None
        implementation("token_logprob_backward", logits)(
            logits, *self._given(begin, end), statistics, upstream, logits
        )
        return logits[0]

    def states(self, begin: int, end: int) -> Tensor:
        """Returns the hidden states of a wave in the dtype of the head."""
        return self.hidden[begin:end].to(self.head.weight.dtype)

    def room(self, count: int) -> Tensor:
        """Returns the rows of the buffer that a wave of so many rows is multiplied as.

        At least LEAST_ROWS: those after the first count are of no use to anybody.
        """
        return self._buffer[: max(count, LEAST_ROWS)]

    def _logits(self, begin: int, end: int) -> Tensor:
        """Returns the logits (end − begin, V) of a wave, in the shared buffer."""
        if self._held != (begin, end):
            states, room = self.states(begin, end), self.room(end - begin)
            missing = room.shape[0] - states.shape[0]
            if missing:
                states = torch.nn.functional.pad(states, (0, 0, 0, missing))
            self.head.write_logits(states, room)
            self._held = begin, end
        return self._buffer[: end - begin]

    def _given(self, begin: int, end: int) -> tuple[Tensor, None, Softmax]:
        """Returns (token, mask, softmax) of a wave as one row of (B, T)."""
        token, inv_temperature, keep = one_row(
            (self.token, self.softmax.inv_temperature, self.softmax.keep), begin, end
        )
        return token, None, Softmax(inv_temperature, self.softmax.softcap, keep)


def one_row(each: Iterable[Tensor | None], begin: int, end: int) -> list:
    """Returns rows begin to end − 1 of each (N, ...) as one row of (B, T)."""
    return [None if x is None else x[begin:end].unsqueeze(0) for x in each]


class _Sum:
    """A sum over waves, shaped like what it is the gradient of; its dtype may be wider."""

    def __init__(self, source: Tensor, dtype: torch.dtype):
        self.source, self.dtype = source, dtype
        self.value: Tensor | None = None

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Adds aᵀ·b; the first of one dtype is the product itself, nothing zeroed for it."""
        if self.value is None and self.dtype == a.dtype:
            self.value = torch.mm(a.t(), b, out=fresh(self.source.shape, self.source))
            return
        total = self.value = self.result(self.dtype)
        if total.dtype == a.dtype:
            total.addmm_(a.t(), b)
        elif not on_host(total.device):
            torch.addmm(total, a.t(), b, out_dtype=total.dtype, out=total)
        else:  # no product of 16-bit matrices into float32 there
            wide = b.to(total.dtype)
            for begin in range(0, a.shape[1], _BLOCK):
                columns = slice(begin, begin + _BLOCK)
                total[columns].addmm_(a[:, columns].to(total.dtype).t(), wide)

    def add(self, x: Tensor) -> None:
        """Adds a tensor."""
        self.value = self.result(self.dtype).add_(x)

    def result(self, dtype: torch.dtype) -> Tensor:
        """Returns the sum so far in this dtype: zeros where there was nothing to add."""
        if self.value is None:
            return announce(self.source.new_empty(self.source.shape, dtype=dtype)).zero_()
        return self.value.to(dtype)


_NAMES = ("weight", "bias", "lora_a", "lora_b")


class Gradients:
    """The gradients of the hidden states and of a head, from those of the logits, wave by wave.

    wants says which of (hidden, weight, bias, lora_a, lora_b) are made. Sums over waves are kept in
    float32, and rounded once.
    """

    def __init__(self, waves: Waves, wants: list[bool]):
        self.waves, self.head = waves, waves.head
        one_wave = waves.count <= waves.wave
        self.sums: dict[str, _Sum] = {}
        for name, source, wanted in zip(_NAMES, self.head[:4], wants[1:]):
            if wanted and source is not None:
                widen = source.dtype in (torch.float16, torch.bfloat16) and not one_wave
                self.sums[name] = _Sum(source, torch.float32 if widen else source.dtype)
        self.hidden = torch.zeros_like(waves.hidden) if wants[0] else None

    def add(self, begin: int, end: int, grad_logits: Tensor) -> None:
        """Adds what the gradient of a wave's logits contributes."""
        head, states = self.head, self.waves.states(begin, end)
        if self.hidden is not None:
            self.hidden[begin:end] = self._of_hidden(end - begin)
        if "weight" in self.sums:
            self.sums["weight"].add_product(grad_logits, states)
        if "bias" in self.sums:
            self.sums["bias"].add(grad_logits.sum(0, dtype=self.sums["bias"].dtype))
        if head.lora_a is None or head.lora_b is None:
            return
        if "lora_b" in self.sums:
            low_rank = states @ head.lora_a.t() * head.lora_scale
            self.sums["lora_b"].add_product(grad_logits, low_rank)
        if "lora_a" in self.sums:
            grad_low_rank = grad_logits @ head.lora_b * head.lora_scale
            self.sums["lora_a"].add_product(grad_low_rank, states)

    def _of_hidden(self, count: int) -> Tensor:
        head, grad_logits = self.head, self.waves.room(count)
        grad = grad_logits @ head.weight
        if head.lora_a is not None and head.lora_b is not None:
            grad.addmm_(grad_logits @ head.lora_b, head.lora_a, alpha=head.lora_scale)
        return grad[:count]

    def results(self, hidden: Tensor) -> list[Tensor]:
        """Returns the five, empty where they are not wanted; rows that do not count are 0."""
        sums = [self.sums.get(name) for name in _NAMES]
        of_head = [hidden.new_empty(0) if x is None else x.result(x.source.dtype) for x in sums]
        if self.hidden is None:
            return [hidden.new_empty(0), *of_head]
        if self.waves.rows is None:
            return [self.hidden, *of_head]
        grad_hidden = torch.zeros_like(hidden)
        self.waves.put(grad_hidden, self.hidden)
        return [grad_hidden, *of_head]
