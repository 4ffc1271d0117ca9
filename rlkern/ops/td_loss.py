# SPDX-License-Identifier: Apache-2.0
"""The operation td_loss: loss, errors, metrics and gradient of action values in one call."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.backends.eager.td_loss import BOOTSTRAPS, TD_KINDS, Transitions, check_actions
from rlkern.backends.eager.value_loss import VALUE_METRICS
from rlkern.ops import _check as check
from rlkern.ops._library import (
    number_tensor,
    refuse_double_backward,
    register,
    register_gradient,
    scaled_gradient,
)
from rlkern.ops._value_arguments import TABLES, constant, known_kind, positive

# What a bootstrap needs beside next_q.
_SECOND = {
    "double": "online_next_q",
    "twin_min": "second_next_q",
    "sarsa": "next_action",
    "expected": "next_probability",
}


class TdLossOutput(NamedTuple):
    """A scalar loss, its metrics (read them with value_metrics_dict), and target − Q(s, a)."""

    loss: Tensor
    metrics: Tensor
    error: Tensor


def _forward(q, *rest):
    transitions, (bootstrap, kind, coef) = Transitions(*rest[:-3]), rest[-3:]
    return implementation("td_loss", q)(q, transitions, bootstrap, kind, coef)


def _forward_fake(q, action, reward, *rest):
    metrics = q.new_empty((len(VALUE_METRICS),), dtype=torch.float64)
    return q.new_empty(()), metrics, torch.empty_like(reward), torch.empty_like(q)


# The tensors are Transitions; coef (2,) float64 on the CPU: discount and delta.
forward = register(
    "td_loss(Tensor q, Tensor action, Tensor reward, Tensor done, Tensor next_q, Tensor? other,"
    " Tensor? next_action, Tensor? weight, str bootstrap, str kind, Tensor coef)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output[3])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_loss, *unused):
    refuse_double_backward("td_loss")
    if grad_loss is None:
        return (None,)
    return (scaled_gradient(ctx.saved_tensors[0], grad_loss),)


register_gradient(forward, _autograd, _setup_context)


def _checked_second(op: str, bootstrap: str, q: Tensor, given: dict[str, Tensor | None]):
    """Returns (table, next action) of a bootstrap; raises where it is missing or another's."""
    if bootstrap not in BOOTSTRAPS:
        expected = ", ".join(BOOTSTRAPS)
        raise ValueError(f"{op}: bootstrap must be one of {expected}, got {bootstrap!r}")
    needed = _SECOND.get(bootstrap)
    for name, x in given.items():
        if (x is None) == (name == needed):
            verb = "must" if name == needed else "must not"
            raise ValueError(f"{op}: {name} {verb} be given with bootstrap {bootstrap!r}")
    table = then = None
    for name, x in given.items():
        if x is not None and name == "next_action":
            check.like(op, name, x, q.shape[:1], q, check.INTEGERS)
            then = constant(x, torch.int64)
        elif x is not None:
            check.like(op, name, x, q.shape, q, check.FLOATS)
            table = constant(x, q.dtype)
    return table, then


def td_loss(
    q: Tensor,
    action: Tensor,
    reward: Tensor,
    done: Tensor,
    next_q: Tensor,
    *,
    discount: float = 0.99,
    bootstrap: str = "max",
    online_next_q: Tensor | None = None,
    second_next_q: Tensor | None = None,
    next_action: Tensor | None = None,
    next_probability: Tensor | None = None,
    kind: str = "huber",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> TdLossOutput:
    """Returns the temporal-difference loss of action values, the errors, and metrics.

        ℓ = penalty(Q(s, a) − y),  y = r + discount·(1 − done)·F(s')

        max       F = max_a Q⁻(s', a)                          arXiv 1312.5602, eq. 2
        double    F = Q⁻(s', argmax_a online_next_q(s', a))    arXiv 1509.06461, eq. 4
        twin_min  F = max_a min(Q⁻(s', a), second_next_q)      after arXiv 1802.09477, eq. 10
        sarsa     F = Q⁻(s', next_action)                      Sutton & Barto 2018, eq. 6.7
        expected  F = Σ_a next_probability(a)·Q⁻(s', a)        Sutton & Barto 2018, eq. 6.9

    The penalty is that of value_loss: huber (Stable-Baselines3), full_squared (CleanRL) or squared.

    Arguments
        q         (B, A) float32 or float64, the values being learned
        action    (B,) int64 or int32, the actions taken
        reward    (B,) float; for n steps their discounted sum, and discount then γⁿ
        done      (B,) bool, True where the episode terminated: next values are not read there.
                  A truncated episode has not terminated
        next_q    (B, A) Q⁻, the target network's values of the next state
        weight    (B,) weight of each transition, such as the importance weights of prioritised
                  replay over B; 1 / B by default. A transition of weight 0 is not read
        others    the one that the bootstrap names
    Returns
        TdLossOutput(loss, metrics, error); error (B,) is y − Q(s, a), what prioritised replay
        sorts by
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape, device or kind
        RuntimeError           on double backward
    Gradient
        to q alone

    >>> q = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> out = td_loss(q, torch.tensor([1]), torch.tensor([0.5]), torch.tensor([False]),
    ...               torch.tensor([[0.0, 4.0]]), discount=0.5)
    >>> out.loss.backward()
    >>> out.error.tolist(), out.loss.item(), q.grad.tolist()
    ([0.5], 0.125, [[0.0, -0.5]])
    """
    op = "td_loss"
    check.tensor(op, "q", q, TABLES)
    if q.ndim != 2 or q.shape[1] == 0:
        raise ValueError(f"{op}: q must be (B, A) with A > 0, got {check.describe(q)}")
    rows = q.shape[:1]
    check.like(op, "action", action, rows, q, check.INTEGERS)
    check.like(op, "reward", reward, rows, q, check.FLOATS)
    check.like(op, "done", done, rows, q, (torch.bool,))
    check.like(op, "next_q", next_q, q.shape, q, check.FLOATS)
    known_kind(op, kind, TD_KINDS)
    given = {"online_next_q": online_next_q, "second_next_q": second_next_q,
             "next_action": next_action, "next_probability": next_probability}  # fmt: skip
    table, then = _checked_second(op, bootstrap, q, given)
    coef = number_tensor((check.number(op, "discount", discount), positive(op, "delta", delta)))
    if weight is not None:
        check.like(op, "weight", weight, rows, q, check.FLOATS)
        check.finite_values(op, "weight", weight, torch.ones_like(done))
        weight = constant(weight, q.dtype)
    transitions = Transitions(
        constant(action, torch.int64), constant(reward, q.dtype), done.contiguous(),
        constant(next_q, q.dtype), table, then, weight,
    )  # fmt: skip
    if check.checks_values():  # a backend looks where that needs no waiting
        check_actions(transitions, q.shape[1])
    loss, metrics, error, _ = forward(q.contiguous(), *transitions, bootstrap, kind, coef)
    return TdLossOutput(loss, metrics, error)
