# SPDX-License-Identifier: Apache-2.0
"""The arguments that all returns share, checked and brought into the form of the operations.

Returns step from counted token to counted token: what is masked, such as a tool's answer inside a
dialogue, is stepped over. Their results are constants, 0 where the mask is False.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends.eager.reverse_scan import at_steps, following, last_counted_steps
from rlkern.ops import _check as check
from rlkern.ops._library import number_tensor
from rlkern.ops._value_arguments import constant
from rlkern.ops.reverse_scan import reverse_scan

FLOATS = (torch.float32, torch.float64)


class Ends(NamedTuple):
    """Where counted steps end an episode inside their sequence, and the value after them.

    The value is 0 where the episode terminated. It is anything where no episode ends.
    """

    done: Tensor
    value: Tensor


class Steps(NamedTuple):
    """(B, T) rows or packed (N,) steps, and what the caller's tensors looked like."""

    op: str
    reward: Tensor
    mask: Tensor
    cu_seqlens: Tensor | None
    shape: torch.Size
    ends: Ends | None = None

    def with_ends(
        self, terminated: Tensor | None, truncated: Tensor | None, final_value: Tensor | None
    ) -> "Steps":
        """Returns the steps with checked ends of episodes; flags of masked steps are not read."""
        if (truncated is None) != (final_value is None):
            raise ValueError(f"{self.op}: truncated and final_value must be given together")
        if terminated is None and truncated is None:
            return self
        over, cut = self._flags("terminated", terminated), self._flags("truncated", truncated)
        cut = cut & ~over
        value = torch.zeros_like(self.reward)
        if final_value is not None:
            dtypes = (self.reward.dtype,)
            check.like(self.op, "final_value", final_value, self.shape, self.reward, dtypes)
            value = torch.where(cut, self.rows(final_value), value)
            check.finite_values(self.op, "final_value", value, cut)
        return self._replace(ends=Ends(over | cut, value))

    def _flags(self, name: str, x: Tensor | None) -> Tensor:
        if x is None:
            return torch.zeros_like(self.mask)
        check.like(self.op, name, x, self.shape, self.reward, (torch.bool,))
        return self.rows(x) & self.mask

    def rows(self, x: Tensor) -> Tensor:
        """Returns a tensor of the caller's shape as a constant in the shape of the steps."""
        return _flat(x, self.reward.shape)

    def sequences(self) -> torch.Size:
        """Returns the shape of what there is one of per sequence."""
        if self.cu_seqlens is None:
            return self.shape[:-1]
        return torch.Size([self.cu_seqlens.shape[0] - 1])

    def floats(self, name: str, x: object) -> Tensor:
        """Returns a checked companion of the rewards."""
        check.like(self.op, name, x, self.shape, self.reward, (self.reward.dtype,))
        rows = self.rows(x)  # type: ignore[arg-type]
        check.finite_values(self.op, name, rows, self.mask)
        return rows

    def per_sequence(self, name: str, x: Tensor | None) -> Tensor | None:
        """Returns one checked number per sequence, flat."""
        if x is None:
            return None
        check.like(self.op, name, x, self.sequences(), self.reward, (self.reward.dtype,))
        return _flat(x, torch.Size([x.numel()]))

    def coefficients(self, **numbers: float | Tensor) -> Tensor:
        """Returns them as float64: (2,) on the CPU, or (2, S) if one is a tensor."""
        if not any(isinstance(x, Tensor) for x in numbers.values()):
            return number_tensor([check.number(self.op, k, x) for k, x in numbers.items()])
        return torch.stack([self._spread(name, x) for name, x in numbers.items()])

    def _spread(self, name: str, x: float | Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.ndim:
            check.like(self.op, name, x, self.sequences(), self.reward, FLOATS)
            return _flat(x, torch.Size([x.numel()])).to(torch.float64)
        one = self.reward.new_full((), 0, dtype=torch.float64) + check.number(self.op, name, x)
        return one.expand(self.sequences().numel())

    def coefficient(self, name: str, x: float | Tensor) -> Tensor:
        """Returns one coefficient in the dtype of the rewards, so that it broadcasts over them."""
        (found,) = self.coefficients(**{name: x})
        if found.ndim:
            found = at_steps(found, self.reward.shape[-1], self.cu_seqlens)
        return found.to(self.reward)

    def after(self, bootstrap: Tensor | None) -> Tensor:
        """Returns the value after each sequence, at steps that end an episode the value after it,
        so that it broadcasts over the steps."""
        found = self.per_sequence("bootstrap", bootstrap)
        if found is None:
            after = self.reward.new_zeros(())
        else:
            after = at_steps(found, self.reward.shape[-1], self.cu_seqlens)
        return after if self.ends is None else torch.where(self.ends.done, self.ends.value, after)

    def scan(self, bias: Tensor, decay: Tensor) -> Tensor:
        """Returns the reverse scan of the counted steps, from 0 in each episode; 0 elsewhere."""
        bias, decay = torch.where(self.mask, bias, 0.0), torch.where(self.mask, decay, 1.0)
        if self.ends is not None:
            decay = torch.where(self.ends.done, 0.0, decay)
        x = reverse_scan(bias, decay, cu_seqlens=self.cu_seqlens)
        return torch.where(self.mask, x, 0.0)

    def returns(self, discount: Tensor, bootstrap: Tensor | None) -> Tensor:
        """Returns the discounted rewards to the end of the episode, and the value after it."""
        reward = self.reward
        if bootstrap is not None or self.ends is not None:
            # At the last counted step, not the last of all: padding then changes no bit.
            last = last_counted_steps(self.mask, self.cu_seqlens)
            last = last if self.ends is None else last | self.ends.done
            reward = torch.where(last, reward + discount * self.after(bootstrap), reward)
        return self.scan(reward, discount)

    def following(self, x: Tensor, after: Tensor) -> Tensor:
        """Returns x of the next counted step of the episode, `after` where there is none."""

        def scan(bias, decay, cu_seqlens):
            return reverse_scan(bias, decay, cu_seqlens=cu_seqlens)

        found = following(x, self.mask, after, self.cu_seqlens, scan)
        return found if self.ends is None else torch.where(self.ends.done, after, found)


def _flat(x: Tensor, shape: torch.Size) -> Tensor:
    return constant(x if x.shape == shape else x.reshape(shape), x.dtype)


def steps(op: str, reward: object, mask: object, cu_seqlens: Tensor | None) -> Steps:
    """Returns the checked rewards and mask of any returns."""
    found = check.tensor(op, "reward", reward, FLOATS)
    check.like(op, "mask", mask, found.shape, found, (torch.bool,))
    if found.ndim == 0:
        raise ValueError(f"{op}: reward must have a time dimension, got a scalar")
    shape = rows = found.shape
    if cu_seqlens is not None:
        cu_seqlens = check.sequence_bounds(op, cu_seqlens, shape, found.device)
    elif len(shape) != 2:
        rows = torch.Size([shape[:-1].numel(), shape[-1]])
    reward, mask = _flat(found, rows), _flat(mask, rows)  # type: ignore[arg-type]
    check.finite_values(op, "reward", reward, mask)
    return Steps(op, reward, mask, cu_seqlens, shape)
