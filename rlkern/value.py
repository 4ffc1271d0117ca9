# SPDX-License-Identifier: Apache-2.0
"""Losses of value functions: of states for PPO, of actions for Q-learning."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.objective import LossOutput
from rlkern.ops import check
from rlkern.ops import td_loss as raw_td
from rlkern.ops import value_loss as raw
from rlkern.ops.library import number_tensor
from rlkern.reference.td_loss import BOOTSTRAPS, TD_KINDS
from rlkern.reference.value_loss import FREE, VALUE_KINDS, VALUE_METRICS

_TABLES = (torch.float32, torch.float64)
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


def _positive(op: str, name: str, x: object) -> float:
    value = check.number(op, name, x)
    if value <= 0:
        raise ValueError(f"{op}: {name} must be greater than 0, got {value}")
    return value


def _kind(op: str, kind: str, known: tuple[str, ...]) -> None:
    if kind not in known:
        raise ValueError(f"{op}: kind must be one of {', '.join(known)}, got {kind!r}")


def _weights(op: str, mask: Tensor, weight: Tensor | None, like: Tensor) -> Tensor:
    if weight is None:
        rows = mask.reshape(1, -1)  # a mean over elements, however they are arranged
        weight = aggregate.token_weight(rows).reshape(mask.shape)
    else:
        check.like(op, "weight", weight, mask.shape, mask, check.FLOATS)
        check.finite_values(op, "weight", weight, mask)
        weight = torch.where(mask, weight.detach(), 0.0)
    return weight.to(like.dtype).contiguous()


def _constant(x: Tensor, like: Tensor) -> Tensor:
    return x.detach().to(like.dtype).contiguous()


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
    _kind(op, kind, tuple(VALUE_KINDS))
    old = _checked_old(op, value, old_value, mask, kind, clip)
    for name, x in (("value", value), ("target", target)):
        check.finite_values(op, name, x, mask)
    coef = number_tensor(
        (
            _positive(op, "clip", 0.2 if clip is None else clip),
            _positive(op, "delta", 1.0 if delta is None else delta),
        )
    )
    if value.dtype not in _TABLES:
        value = value.float()
    constants = (_constant(target, value), None if old is None else _constant(old, value))
    weights = _weights(op, mask, weight, value)
    loss, metrics, _ = raw.value_loss(value.contiguous(), *constants, weights, kind, coef)
    return LossOutput(loss, metrics)


def _action_values(op: str, name: str, action: Tensor, counted: Tensor, actions: int) -> None:
    """Raises ValueError if a counted action is none (a check of values)."""
    if check.checks_values():
        outside = action[counted & ((action < 0) | (action >= actions))]
        if outside.numel():
            got = outside[0].item()
            raise ValueError(f"{op}: {name} must be in [0, {actions}), got {got}")


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
            then = x.to(torch.int64).contiguous()
        elif x is not None:
            check.like(op, name, x, q.shape, q, check.FLOATS)
            table = _constant(x, q)
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
    check.tensor(op, "q", q, _TABLES)
    if q.ndim != 2 or q.shape[1] == 0:
        raise ValueError(f"{op}: q must be (B, A) with A > 0, got {check.describe(q)}")
    rows = q.shape[:1]
    check.like(op, "action", action, rows, q, check.INTEGERS)
    check.like(op, "reward", reward, rows, q, check.FLOATS)
    check.like(op, "done", done, rows, q, (torch.bool,))
    check.like(op, "next_q", next_q, q.shape, q, check.FLOATS)
    _kind(op, kind, TD_KINDS)
    given = {"online_next_q": online_next_q, "second_next_q": second_next_q,
             "next_action": next_action, "next_probability": next_probability}  # fmt: skip
    table, then = _checked_second(op, bootstrap, q, given)
    counted = torch.ones_like(done) if weight is None else weight != 0
    _action_values(op, "action", action, counted, q.shape[1])
    if then is not None:
        _action_values(op, "next_action", then, counted & ~done, q.shape[1])
    numbers = (check.number(op, "discount", discount), _positive(op, "delta", delta))
    loss, metrics, _, error = raw_td.td_loss(
        q.contiguous(), action.to(torch.int64).contiguous(), _constant(reward, q),
        done.contiguous(), _constant(next_q, q), table, then,
        _weights(op, counted, weight, q), bootstrap, kind, number_tensor(numbers),
    )  # fmt: skip
    return TdLossOutput(loss, metrics, error)


def value_metrics_dict(metrics: Tensor) -> dict[str, float]:
    """Returns the metrics of value_loss or td_loss by name. Reads the vector: synchronises.

    count, value_mean, target_mean, explained_variance = 1 − Var(R − V) / Var(R), and the share of
    elements on which the clip decides, clip_fraction. The vectors hold sums: those of micro-batches
    and of ranks add up. Where all targets are equal explained_variance is NaN (as in
    Stable-Baselines3 and CleanRL).

    >>> value, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 6.0])
    >>> out = value_loss(value, None, target, torch.ones(3).bool(), kind="squared")
    >>> round(value_metrics_dict(out.metrics)["explained_variance"], 4)  # 1 − (6/3) / (14/3)
    0.5714
    """
    if metrics.shape != (len(VALUE_METRICS),):
        got = check.describe(metrics)
        raise ValueError(f"value_metrics_dict: metrics must be ({len(VALUE_METRICS)},), got {got}")
    count, *sums = metrics.tolist()
    mean = dict(zip(VALUE_METRICS[1:], (x / max(count, 1.0) for x in sums), strict=True))
    residual = mean["error_square"] - mean["error"] ** 2
    total = mean["target_square"] - mean["target"] ** 2
    return {
        "count": count,
        "value_mean": mean["value"],
        "target_mean": mean["target"],
        "explained_variance": 1.0 - residual / total if total > 0 else float("nan"),
        "clip_fraction": mean["clipped"],
    }
