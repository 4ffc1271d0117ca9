# SPDX-License-Identifier: Apache-2.0
"""The operation value_loss: loss, metrics and gradient of a value estimate in one call."""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.backends.eager.value_loss import FREE, VALUE_KINDS, VALUE_METRICS
from rlkern.ops import _check as check
from rlkern.ops._library import (
    number_tensor,
    refuse_double_backward,
    register,
    register_gradient,
    scaled_gradient,
)
from rlkern.ops._loss_output import LossOutput
from rlkern.ops._value_arguments import TABLES, constant, known_kind, positive, weights_of


def _forward_fake(value, *rest):
    metrics = value.new_empty((len(VALUE_METRICS),), dtype=torch.float64)
    return value.new_empty(()), metrics, torch.empty_like(value)


# coef (2,) float64 on the CPU: clip and delta.
forward = register(
    "value_loss(Tensor value, Tensor target, Tensor? old_value, Tensor weight, str kind,"
    " Tensor coef) -> (Tensor, Tensor, Tensor)",
    lambda value, *rest: implementation("value_loss", value)(value, *rest),
    _forward_fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_loss, *unused):
    refuse_double_backward("value_loss")
    if grad_loss is None:
        return (None,)
    return (scaled_gradient(ctx.saved_tensors[0], grad_loss),)


register_gradient(forward, _autograd, _setup_context)


def _checked_old(
    op: str, value: Tensor, old_value: Tensor | None, mask: Tensor, kind: str, clip: float | None
) -> Tensor | None:
    """Returns the old value where the kind clips; raises where it is missing or useless."""
    if VALUE_KINDS[kind].rule == FREE:
        if clip is not None:
            raise ValueError(f"{op}: clip belongs to the kinds that clip, got kind {kind!r}")
        return None
    if old_value is None:
        raise ValueError(f"{op}: kind {kind!r} clips, so old_value must be given")
    check.like(op, "old_value", old_value, value.shape, value, check.FLOATS)
    check.finite_values(op, "old_value", old_value, mask)
    return old_value


def value_loss(
    value: Tensor,
    old_value: Tensor | None,
    target: Tensor,
    mask: Tensor,
    *,
    kind: str = "clipped",
    clip: float | None = None,
    delta: float | None = None,
    weight: Tensor | None = None,
) -> LossOutput:
    """Returns the loss Σ weight·ℓ of value estimates against their targets, and metrics.

        V_clip = clamp(V, V_old − clip, V_old + clip)        H(e) = e²/2 up to delta, then linear

        clipped        ½·max((V − R)², (V_clip − R)²)   TRL, verl, OpenRLHF, NeMo, CleanRL
        full_clipped   max((V − R)², (V_clip − R)²)     slime: the same without the ½
        clipped_huber  max(H(V − R), H(V_clip − R))     AReaL, delta 10
        clipped_only   (V_clip − R)²                    Stable-Baselines3: no maximum, no ½
        squared        ½·(V − R)²                       A2C
        full_squared   (V − R)²                         mean squared error
        huber          H(V − R)

    Paper: arXiv 1707.06347, eq. 9 has (V − R)²; the clip is that of the authors' code, described in
    arXiv 2005.12729, §3. With clipped_only an estimate outside the clip has no gradient, even one
    on the wrong side; the maximum lets it come back.

    Arguments
        value      (...) float of any width
        old_value  (...) the estimate at rollout; needed by the kinds that clip, else ignored
        target     (...) the return that the estimate should be
        mask       (...) bool, True counts; anything elsewhere
        kind       one of the table
        clip       half-width of the clip, 0.2 by default (verl has 0.5)
        delta      where Huber's penalty becomes linear, 1 by default
        weight     (...) weight of each element; by default 1 / (number of counted elements)
    Returns
        LossOutput(loss, metrics): a float32 scalar (float64 for float64 values), and a vector that
        value_metrics_dict reads
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape, device or kind
        RuntimeError           on double backward
    Gradient
        to value alone

    >>> value, old = torch.tensor([2.0, 0.0], requires_grad=True), torch.zeros(2)
    >>> out = value_loss(value, old, torch.tensor([1.0, 3.0]), torch.tensor([True, True]))
    >>> out.loss.backward()
    >>> round(out.loss.item(), 4), value.grad.tolist()  # ½·(max(1, 0.64) + 9) / 2, (1, −3) / 2
    (2.5, [0.5, -1.5])
    """
    op = "value_loss"
    check.tensor(op, "value", value, check.FLOATS)
    check.like(op, "target", target, value.shape, value, check.FLOATS)
    check.like(op, "mask", mask, value.shape, value, (torch.bool,))
    known_kind(op, kind, tuple(VALUE_KINDS))
    old = _checked_old(op, value, old_value, mask, kind, clip)
    for name, x in (("value", value), ("target", target)):
        check.finite_values(op, name, x, mask)
    coef = number_tensor(
        (
            positive(op, "clip", 0.2 if clip is None else clip),
            positive(op, "delta", 1.0 if delta is None else delta),
        )
    )
    if value.dtype not in TABLES:
        value = value.float()
    constants = (constant(target, value.dtype), None if old is None else constant(old, value.dtype))
    weights = weights_of(op, mask, weight, value)
    loss, metrics, _ = forward(value.contiguous(), *constants, weights, kind, coef)
    return LossOutput(loss, metrics)
