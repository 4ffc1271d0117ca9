# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the losses of a value estimate against its target.

The C++ home of the same formulas is csrc/math/value_loss.h, the Triton home
kernels/triton/value_loss.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends.eager.autograd import recordable, recording

# Sums over the counted elements, in float64: they add up over micro-batches and ranks, and a
# variance can be taken from them. error is target − value.
VALUE_METRICS = ("count", "value", "target", "error", "error_square", "target_square", "clipped")


def half_square(error: Tensor, delta: float) -> Tensor:
    """Returns error²/2."""
    return 0.5 * error.square()


def square(error: Tensor, delta: float) -> Tensor:
    """Returns error²."""
    return error.square()


def huber(error: Tensor, delta: float) -> Tensor:
    """Returns error²/2 up to |error| = delta, and the tangent delta·(|error| − delta/2) beyond.

    Paper: Huber 1964, doi 10.1214/aoms/1177703732, eq. 1.5 gives its derivative.
    """
    size = error.abs()
    return torch.where(size <= delta, 0.5 * error.square(), delta * (size - 0.5 * delta))


Penalty = Callable[[Tensor, float], Tensor]
# What is penalised: the estimate itself, the larger penalty of the estimate and of the estimate
# clipped to within clip of the old one, or that of the clipped estimate.
FREE, LARGER, CLIPPED = "free", "larger", "clipped"


class ValueKind(NamedTuple):
    """A value loss: its penalty of an error, and of which errors."""

    penalty: Penalty
    rule: str


# The position is the number that the native kernels know the kind by.
VALUE_KINDS = {
    "squared": ValueKind(half_square, FREE),
    "full_squared": ValueKind(square, FREE),
    "huber": ValueKind(huber, FREE),
    "clipped": ValueKind(half_square, LARGER),
    "full_clipped": ValueKind(square, LARGER),
    "clipped_huber": ValueKind(huber, LARGER),
    "clipped_only": ValueKind(square, CLIPPED),
}
VALUE_KIND_INDEX = {name: i for i, name in enumerate(VALUE_KINDS)}


def value_term(
    value: Tensor, target: Tensor, old_value: Tensor, kind: str, clip: float, delta: float
) -> tuple[Tensor, Tensor]:
    """Returns the loss of each element, differentiable in value, and where the clip is in force."""
    penalty, rule = VALUE_KINDS[kind]
    free = penalty(value - target, delta)
    if rule == FREE:
        return free, torch.zeros_like(value, dtype=torch.bool)
    near = torch.minimum(torch.maximum(value, old_value - clip), old_value + clip)
    held = penalty(near - target, delta)
    if rule == CLIPPED:
        return held, (near < value) | (near > value)
    # Inside the clip both are the same number: the gradient is that of the free one.
    clipped = held > free
    return torch.where(clipped | held.isnan(), held, free), clipped


def value_metrics(value: Tensor, target: Tensor, clipped: Tensor, counted: Tensor) -> Tensor:
    """Returns VALUE_METRICS of values and targets that are 0 where they are not counted."""
    v, t = value.double(), target.double()
    error = t - v
    fields = (counted, v, t, error, error.square(), t.square(), clipped)
    return torch.stack([x.sum(dtype=torch.float64) for x in fields])


def value_loss(
    value: Tensor, target: Tensor, old_value: Tensor | None, weight: Tensor, kind: str, coef: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_value) of loss = Σ weight·ℓ; coef is (clip, delta).

    Elements of weight 0 are not read.
    """
    clip, delta = coef.tolist()
    counted = weight != 0
    value, target, old = (
        torch.where(counted, x.detach(), 0.0)
        for x in (value, target, value if old_value is None else old_value)
    )
    with recording():
        value, target, old, weight, counted = map(recordable, (value, target, old, weight, counted))
        value.requires_grad_()
        term, clipped = value_term(value, target, old, kind, clip, delta)
        loss = torch.where(counted, weight * term, 0.0).sum()
        (grad_value,) = torch.autograd.grad(loss, value)
    return loss.detach(), value_metrics(value.detach(), target, clipped, counted), grad_value
