# SPDX-License-Identifier: Apache-2.0
"""The scalar losses: an algorithm's declaration, coefficients and weights become one fused call."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlkern import aggregate
from rlkern.algorithms import Algorithm
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.ops import check, sharded
from rlkern.ops import policy_loss as raw
from rlkern.ops.library import number_tensor
from rlkern.ops.rows import as_grid, make_softmax, row_vector, sequence_bounds, token_vector
from rlkern.reference.gates import GATE_COEFFICIENTS
from rlkern.reference.kl import KL_ESTIMATORS
from rlkern.reference.levels import Sequences
from rlkern.reference.token_objective import Objective, Rows


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
        number = check.number(declared.name, name, known[name])
        if name != "entropy_coef" and number < 0:
            raise ValueError(f"{declared.name}: {name} must not be negative, got {number}")
        return number

    gate_coef = [value(name) for name in declared.gate_coef]
    unused = [0.0] * (GATE_COEFFICIENTS - len(gate_coef))
    return Objective(
        declared.gate,
        declared.level,
        str(known["kl_estimator"]),
        (*gate_coef, *unused),
        value("kl_coef"),
        value("entropy_coef"),
    )


def _expand_advantage(
    op: str, advantage: Tensor, shape: torch.Size, bounds: Tensor | None
) -> Tensor:
    check.tensor(op, "advantage", advantage, check.FLOATS)
    if advantage.shape == shape:
        return advantage
    if bounds is not None and advantage.ndim == 1 and advantage.numel() == bounds.numel() - 1:
        return advantage[Sequences(shape, bounds).of_row]
    if len(shape) > 1 and advantage.shape == shape[:1]:
        return advantage.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    short = tuple(shape[:1]) if bounds is None else (bounds.numel() - 1,)
    raise ValueError(
        f"{op}: advantage must be {tuple(shape)} or {short}, got {check.describe(advantage)}"
    )


def _weights(
    op: str, mask: Tensor, weight: Tensor | None, declared: Algorithm, bounds: Tensor | None
) -> Tensor:
    if weight is not None:
        check.like(op, "weight", weight, mask.shape, mask, check.FLOATS)
        check.finite_values(op, "weight", weight, mask)
        return torch.where(mask, weight, 0.0)
    if mask.ndim == 1 and bounds is None and declared.aggregation != "token_mean":
        raise ValueError(
            f"{op}: {declared.name} averages over sequences, so mask must be (B, T), "
            f"or cu_seqlens or weight be given, got {check.describe(mask)}"
        )
    rows = mask.reshape(1, -1) if mask.ndim == 1 and bounds is None else mask
    weights = aggregate.token_weight(rows, declared.aggregation, cu_seqlens=bounds)
    return weights.reshape(mask.shape)


class LossArguments(NamedTuple):
    """What policy_loss and token_objective are both given, beside the scores."""

    advantage: Tensor
    mask: Tensor
    old_logprob: Tensor | None
    ref_logprob: Tensor | None
    correction: Tensor | None
    cu_seqlens: Tensor | None
    weight: Tensor | None
    algorithm: str
    coefficients: Mapping[str, float | str]


class CheckedArguments(NamedTuple):
    """The same, checked."""

    rows: Rows
    bounds: Tensor | None
    objective: Objective

    def operator_form(self) -> tuple:
        """Returns what the operators take after the rows."""
        names = self.objective.gate, self.objective.level, self.objective.kl
        return self.bounds, *names, number_tensor(self.objective.numbers)


def checked_arguments(
    op: str, scores: Tensor, shape: torch.Size, given: LossArguments
) -> CheckedArguments:
    check.like(op, "mask", given.mask, shape, scores, (torch.bool,))
    bounds = sequence_bounds(op, given.cu_seqlens, shape, scores.device)
    declared = find_algorithm(given.algorithm)
    objective = make_objective(declared, given.coefficients)
    if declared.level != "token" and bounds is None and len(shape) != 2:
        raise ValueError(
            f"{op}: {declared.name} compares whole sequences, so rows must be (B, T), "
            f"or (N,) with cu_seqlens, got {tuple(shape)}"
        )
    if objective.kl_coef != 0 and given.ref_logprob is None:
        raise ValueError(f"{op}: kl_coef is {objective.kl_coef}, so ref_logprob must be given")
    weight = _weights(op, given.mask, given.weight, declared, bounds)
    advantage = _expand_advantage(op, given.advantage, shape, bounds)
    rows = Rows(advantage, weight, given.old_logprob, given.ref_logprob, given.correction)
    for name, x in zip(rows._fields, rows):
        if x is not None:
            check.like(op, name, x, shape, scores, check.FLOATS)
            check.finite_values(op, name, x, given.mask)
    return CheckedArguments(rows, bounds, objective)


def policy_loss(
    logits: Tensor,
    token: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    correction: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    keep: Tensor | None = None,
    algorithm: str = "grpo",
    weight: Tensor | None = None,
    inplace: bool = False,
    group: ProcessGroup | None = None,
    **coefficients: float | str,
) -> LossOutput:
    """Returns the loss of sampled tokens, its gradient made in the same pass over the logits.

        loss = Σ_t weight_t · (correction_t·gate(log π, log r, A)
                               + kl_coef·KL(π, π_ref) − entropy_coef·H)

    Gate, ratio level and coefficients are the algorithm's (rlkern.algorithms). logits[b, t] scores
    token[b, t]: nothing is shifted here. Without old_logprob the batch is on policy, ratio 1.
    Token-level objectives read the logits once and write their gradient once; where the ratio is a
    sequence's (GSPO) or the vocabulary is split (group), the logits are read twice.

    Arguments
        logits        (B, T, V) or (N, V) float of any width, the last dimension contiguous
        token         (B, T) int64 or int32; any value where mask is False
        advantage     (B, T) or (B,) float; with cu_seqlens (N,) or (S,)
        mask          (B, T) bool, True counts; other rows are not read, whatever they hold
        old_logprob   (B, T) log π_old, of the policy that sampled (or of the last refresh)
        ref_logprob   (B, T) log π_ref; needed when kl_coef is not 0
        correction    (B, T) factor of the gate's loss, from rlkern.rollout_correction
        cu_seqlens    (S + 1,) int32 or int64: sequence i is the flat rows cu_seqlens[i] to
                      cu_seqlens[i + 1]; without it a sequence is a row of (B, T)
        temperature   a number > 0, or a float tensor that broadcasts to (B, T)
        softcap, keep  as in rlkern.token_logprob
        weight        (B, T) weight of each token; by default aggregate.token_weight(mask) with
                      the algorithm's mode. Give it when the batch is split: it has the counts
        inplace       write the gradient over the logits (they must not be used afterwards)
        group         as in rlkern.token_logprob: the ranks hold slices of the vocabulary, and each
                      gets the loss of the whole and its slice's gradient, made by the backward
        coefficients  kl_coef, kl_estimator, entropy_coef, and the algorithm's own, such as
                      clip_low and clip_high
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
    given = LossArguments(
        advantage, mask, old_logprob, ref_logprob, correction, cu_seqlens, weight, algorithm,
        coefficients,
    )  # fmt: skip
    checked = checked_arguments(op, logits, shape, given)
    grid = as_grid(op, logits)
    part = None if group is None else sharded.slice_of(op, grid, group)
    whole = grid if part is None else part.whole
    check.token_values(op, token, mask, whole.shape[-1])
    token = token_vector(token, grid)
    rows = [None if x is None else row_vector(x, grid) for x in checked.rows]
    softmax = make_softmax(op, whole, shape, mask, temperature, softcap, keep)
    if part is not None:
        counted = row_vector(checked.rows.weight, grid) != 0
        scored = sharded.score(part, grid, token, counted, softmax, inplace)
        loss, metrics, _, _ = raw.token_objective(
            scored.logprob, scored.entropy, *rows, *checked.operator_form()
        )
        return LossOutput(loss, metrics.detach())
    arguments = (token, *rows, *softmax, *checked.operator_form())
    differentiable = torch.is_grad_enabled() and logits.requires_grad
    if inplace and differentiable:
        return LossOutput(*raw.PolicyLossInPlace.apply(grid, *arguments))
    loss, metrics, _ = raw.policy_loss(grid, *arguments, differentiable)
    return LossOutput(loss, metrics.detach())


def token_objective(
    logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    entropy: Tensor | None = None,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    correction: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
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
    check.tensor(op, "logprob", logprob, (torch.float32, torch.float64))
    shape = logprob.shape
    if entropy is not None:
        check.like(op, "entropy", entropy, shape, logprob, (logprob.dtype,))
    given = LossArguments(
        advantage, mask, old_logprob, ref_logprob, correction, cu_seqlens, weight, algorithm,
        coefficients,
    )  # fmt: skip
    checked = checked_arguments(op, logprob, shape, given)
    check.finite_values(op, "logprob", logprob, mask)
    entropy_coef = checked.objective.entropy_coef
    if entropy_coef != 0 and entropy is None:
        raise ValueError(f"{op}: entropy_coef is {entropy_coef}, so entropy must be given")
    if len(shape) != 2:
        shape = torch.Size((1, shape.numel()))

    def as_rows(x: Tensor) -> Tensor:
        return x.to(logprob.dtype).reshape(shape).contiguous()

    constants = [None if x is None else as_rows(x.detach()) for x in checked.rows]
    scores = as_rows(logprob), torch.zeros_like(logprob) if entropy is None else entropy
    loss, metrics, _, _ = raw.token_objective(
        scores[0], as_rows(scores[1]), *constants, *checked.operator_form()
    )
    return LossOutput(loss, metrics.detach())
