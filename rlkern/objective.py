# SPDX-License-Identifier: Apache-2.0
"""The scalar losses: an algorithm's declaration, coefficients and weights become one fused call."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.algorithms import Algorithm
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.ops import check
from rlkern.ops import policy_loss as raw
from rlkern.ops.rows import as_grid, inverse_temperature, row_vector, token_vector
from rlkern.reference.token_objective import KL_ESTIMATORS, METRICS, Objective


class LossOutput(NamedTuple):
    """A scalar loss, and its metrics as one device vector (read it with metrics_dict)."""

    loss: Tensor
    metrics: Tensor


def make_objective(declared: Algorithm, coefficients: Mapping[str, float | str]) -> Objective:
    """Returns the token objective of an algorithm, the coefficients laid over its defaults."""
    known: dict[str, float | str] = {**declared.defaults, "kl_estimator": declared.kl_estimator}
    for name in coefficients:
        if name not in known:
            raise TypeError(
                f"{declared.name}: unknown coefficient {name!r}, expected one of {', '.join(known)}"
            )
    known.update(coefficients)
    if known["kl_estimator"] not in tuple(KL_ESTIMATORS):
        raise ValueError(
            f"{declared.name}: kl_estimator must be one of {', '.join(KL_ESTIMATORS)}, "
            f"got {known['kl_estimator']!r}"
        )

    def value(name: str) -> float:
        return check.number(declared.name, name, known[name]) if name else 0.0

    low, high = map(value, declared.gate_coef)
    if min(low, high) < 0:
        raise ValueError(
            f"{declared.name}: clip widths are distances from 1 and must not be negative, "
            f"got {low} and {high}"
        )
    return Objective(
        declared.gate,
        (low, high),
        str(known["kl_estimator"]),
        value("kl_coef"),
        value("entropy_coef"),
    )


def _expand_advantage(op: str, advantage: Tensor, shape: torch.Size) -> Tensor:
    check.tensor(op, "advantage", advantage, check.FLOATS)
    if advantage.shape == shape:
        return advantage
    if len(shape) > 1 and advantage.shape == shape[:1]:
        return advantage.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    expected = f"{tuple(shape)} or {tuple(shape[:1])}"
    raise ValueError(f"{op}: advantage must be {expected}, got {check.describe(advantage)}")


def _weights(op: str, mask: Tensor, weight: Tensor | None, declared: Algorithm) -> Tensor:
    if weight is None:
        # A flat (N,) mask is one packed row: only a mean over tokens is defined for it.
        if mask.ndim == 1 and declared.aggregation != "token_mean":
            raise ValueError(
                f"{op}: {declared.name} averages over sequences, so mask must be (B, T) "
                f"or weight be given, got {check.describe(mask)}"
            )
        rows = mask.reshape(1, -1) if mask.ndim == 1 else mask
        return aggregate.token_weight(rows, declared.aggregation).reshape(mask.shape)
    check.like(op, "weight", weight, mask.shape, mask, check.FLOATS)
    check.finite_values(op, "weight", weight, mask)
    return torch.where(mask, weight, 0.0)


def _checked_rows(op, shape, device_of, advantage, mask, old_logprob, ref_logprob):
    check.like(op, "mask", mask, shape, device_of, (torch.bool,))
    advantage = _expand_advantage(op, advantage, shape)
    check.like(op, "advantage", advantage, shape, device_of, check.FLOATS)
    optional = {"old_logprob": old_logprob, "ref_logprob": ref_logprob}
    for name, x in optional.items():
        if x is not None:
            check.like(op, name, x, shape, device_of, check.FLOATS)
        check.finite_values(op, name, x, mask)
    check.finite_values(op, "advantage", advantage, mask)
    return advantage


def _require_reference(op: str, objective: Objective, ref_logprob: Tensor | None) -> None:
    if objective.kl_coef != 0 and ref_logprob is None:
        raise ValueError(f"{op}: kl_coef is {objective.kl_coef}, so ref_logprob must be given")


def policy_loss(
    logits: Tensor,
    token: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    algorithm: str = "grpo",
    weight: Tensor | None = None,
    inplace: bool = False,
    **coefficients: float | str,
) -> LossOutput:
    """Returns the loss of sampled tokens, its gradient made in the same pass over the logits.

        loss = Σ_t weight_t · (gate(log π, log π_old, A) + kl_coef·KL(π, π_ref) − entropy_coef·H)

    The gate and its coefficients are the algorithm's (rlkern.algorithms). logits[b, t] scores
    token[b, t]: nothing is shifted here. Without old_logprob the batch is on policy, ratio 1.

    Arguments
        logits        (B, T, V) or (N, V) float of any width, the last dimension contiguous
        token         (B, T) int64 or int32; any value where mask is False
        advantage     (B, T) or (B,) float
        mask          (B, T) bool, True counts; other rows are not read, whatever they hold
        old_logprob   (B, T) log π_old, of the policy that sampled (or of the last refresh)
        ref_logprob   (B, T) log π_ref; needed when kl_coef is not 0
        temperature   a number > 0, or a float tensor that broadcasts to (B, T)
        weight        (B, T) weight of each token; by default aggregate.token_weight(mask) with
                      the algorithm's mode. Give it when the batch is split: it has the counts
        inplace       write the gradient over the logits (they must not be used afterwards)
        coefficients  clip_low, clip_high, kl_coef, kl_estimator, entropy_coef
    Returns
        LossOutput(loss, metrics): a float32 scalar (float64 for float64 logits), and a vector
        that metrics_dict reads
    Raises
        TypeError, ValueError  for a wrong dtype, shape or device, or an unknown coefficient
        RuntimeError           on double backward
    Gradient
        to logits alone, in their dtype, made before the loss is scaled: with float16 logits scale
        the weights instead of the loss. With inplace=True a second backward() raises

    >>> logits = torch.zeros(1, 1, 2, requires_grad=True)
    >>> out = policy_loss(logits, torch.tensor([[0]]), torch.tensor([1.0]), torch.tensor([[True]]))
    >>> out.loss.backward()
    >>> logits.grad.tolist()
    [[[-0.5, 0.5]]]
    """
    op = "policy_loss"
    check.logits(op, logits)
    shape = logits.shape[:-1]
    check.like(op, "token", token, shape, logits, check.INTEGERS)
    advantage = _checked_rows(op, shape, logits, advantage, mask, old_logprob, ref_logprob)
    check.token_values(op, token, mask, logits.shape[-1])
    declared = find_algorithm(algorithm)
    objective = make_objective(declared, coefficients)
    _require_reference(op, objective, ref_logprob)
    weights = _weights(op, mask, weight, declared)
    grid = as_grid(op, logits)
    rows = [None if x is None else row_vector(x, grid)
            for x in (advantage, weights, old_logprob, ref_logprob)]  # fmt: skip
    arguments = (
        token_vector(token, grid),
        *rows,
        inverse_temperature(op, temperature, mask, shape, grid),
    )
    differentiable = torch.is_grad_enabled() and logits.requires_grad
    if inplace and differentiable:
        return LossOutput(*raw.PolicyLossInPlace.apply(grid, *arguments, *objective))
    loss, metrics, _ = raw.policy_loss(grid, *arguments, *objective, differentiable)
    return LossOutput(loss, metrics.detach())


def token_objective(
    logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    entropy: Tensor | None = None,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    algorithm: str = "grpo",
    weight: Tensor | None = None,
    **coefficients: float | str,
) -> LossOutput:
    """Returns the same loss as policy_loss from log-probabilities that are already there.

    The arguments are those of policy_loss with logprob (B, T) in place of logits and token;
    entropy (B, T) is needed when entropy_coef is not 0.

    Gradient
        to logprob and entropy

    >>> logprob = torch.log(torch.tensor([[0.5]])).requires_grad_()
    >>> out = token_objective(logprob, torch.tensor([3.0]), torch.tensor([[True]]))
    >>> out.loss.backward()
    >>> logprob.grad.tolist()
    [[-3.0]]
    """
    op = "token_objective"
    floats = (torch.float32, torch.float64)
    check.tensor(op, "logprob", logprob, floats)
    shape = logprob.shape
    if entropy is not None:
        check.like(op, "entropy", entropy, shape, logprob, (logprob.dtype,))
    advantage = _checked_rows(op, shape, logprob, advantage, mask, old_logprob, ref_logprob)
    check.finite_values(op, "logprob", logprob, mask)
    declared = find_algorithm(algorithm)
    objective = make_objective(declared, coefficients)
    _require_reference(op, objective, ref_logprob)
    if objective.entropy_coef != 0 and entropy is None:
        raise ValueError(
            f"{op}: entropy_coef is {objective.entropy_coef}, so entropy must be given"
        )
    weights = _weights(op, mask, weight, declared)

    def flat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(logprob.dtype).reshape(1, -1).contiguous()

    entropy_rows = torch.zeros_like(logprob) if entropy is None else entropy
    constants = [flat(x if x is None else x.detach())
                 for x in (advantage, weights, old_logprob, ref_logprob)]  # fmt: skip
    loss, metrics, _, _ = raw.token_objective(
        flat(logprob), flat(entropy_rows), *constants, *objective
    )
    return LossOutput(loss, metrics.detach())


def metrics_dict(metrics: Tensor) -> dict[str, float]:
    """Returns the metrics by name, means over the counted tokens. Reads the vector: synchronises.

    logprob, entropy, kl (to the reference), old_kl (k3 to the old policy), ratio/{mean,min,max},
    and the share of tokens whose gradient the clip removes: clip_ratio/{low,high,region}_mean.

    >>> metrics_dict(torch.tensor([2.0, -3.0, 1.0, 0.0, 0.0, 2.0, 1.0, 0.0, 0.9, 1.1]))["logprob"]
    -1.5
    """
    if metrics.shape != (len(METRICS),):
        got = check.describe(metrics)
        raise ValueError(f"metrics_dict: metrics must be ({len(METRICS)},), got {got}")
    values = dict(zip(METRICS, metrics.tolist(), strict=True))
    count = values["count"]
    if count == 0:
        values.update(ratio_min=0.0, ratio_max=0.0)
    mean = {name: values[name] / max(count, 1.0) for name in METRICS[1:8]}
    return {
        "num_tokens": count,
        "logprob": mean["logprob"],
        "entropy": mean["entropy"],
        "kl": mean["kl"],
        "old_kl": mean["old_kl"],
        "ratio/mean": mean["ratio"],
        "ratio/min": values["ratio_min"],
        "ratio/max": values["ratio_max"],
        "clip_ratio/low_mean": mean["clip_low"],
        "clip_ratio/high_mean": mean["clip_high"],
        "clip_ratio/region_mean": mean["clip_low"] + mean["clip_high"],
    }


def merge_metrics(metrics: list[Tensor]) -> Tensor:
    """Returns the metrics vector of several batches together.

    >>> a = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    >>> merge_metrics([a, a])[:2].tolist()
    [2.0, -2.0]
    """
    if not metrics:
        raise ValueError("merge_metrics: metrics must be a list of vectors, got an empty list")
    stacked = torch.stack(metrics)
    smallest, largest = stacked[:, 8:9].amin(0), stacked[:, 9:10].amax(0)
    return torch.cat([stacked[:, :8].sum(0), smallest, largest])
