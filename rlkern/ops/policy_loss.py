# SPDX-License-Identifier: Apache-2.0
"""The operation policy_loss: loss, metrics and gradient in one call.

An objective of level token runs in one sweep of a backend's policy_loss. Where a sequence decides,
the sweep must end before the first gradient element: token_logprob, token_objective and the
backward of the first are then three passes over the logits, which is as few as there can be.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlkern.algorithms import Algorithm
from rlkern.backends import implementation
from rlkern.backends.eager.token_logprob import Softmax, Upstream
from rlkern.backends.eager.token_objective import Objective, Rows
from rlkern.backends.memory import fresh
from rlkern.ops import _check as check
from rlkern.ops import _sharded as sharded
from rlkern.ops._library import (
    bump_version_of_first_argument,
    refuse_double_backward,
    register,
    register_gradient,
    saved_tensors,
    scaled_gradient,
)
from rlkern.ops._loss_output import LossOutput
from rlkern.ops._objective import (
    OBJECTIVE,
    ROWS,
    LossArguments,
    checked_arguments,
    scalars,
)
from rlkern.ops._rows import SOFTMAX, as_grid, make_softmax, row_vectors, token_vector
from rlkern.ops.token_objective import forward as token_objective


def _parts(arguments):
    """Returns (rows, softmax, cu_seqlens, objective) of what follows logits and token."""
    rows, rest = Rows(*arguments[: len(Rows._fields)]), arguments[len(Rows._fields) :]
    cu_seqlens, gate, level, kl, coefficients = rest[3:]
    objective = Objective.of(gate, level, kl, coefficients.tolist())
    return rows, Softmax(*rest[:3]), cu_seqlens, objective


def _run(logits, token, arguments, grad_logits):
    rows, softmax, cu_seqlens, objective = _parts(arguments)
    if objective.level == "token":
        return implementation("policy_loss", logits)(
            logits, token, rows, softmax, objective, grad_logits
        )
    mask = rows.weight != 0
    scored = implementation("token_logprob", logits)(logits, token, mask, softmax)
    loss, metrics, *grads = implementation("token_objective", scored[0])(
        scored[0], scored[1], rows, cu_seqlens, objective
    )
    if grad_logits is not None:
        implementation("token_logprob_backward", logits)(
            logits, token, mask, softmax, scored.statistics, Upstream(*grads), grad_logits
        )
    return loss, metrics


def _forward(logits, token, *rest):
    *arguments, want_grad = rest
    shape = logits.shape if want_grad else (0,)
    grad_logits = fresh(shape, logits)
    return *_run(logits, token, arguments, grad_logits if want_grad else None), grad_logits


def _forward_fake(logits, *rest):
    shape = logits.shape if rest[-1] else (0,)
    return *scalars(logits), torch.empty(shape, dtype=logits.dtype, device=logits.device)


forward = register(
    f"policy_loss(Tensor logits, Tensor token, {ROWS}, {SOFTMAX}, {OBJECTIVE},"
    " bool want_grad) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
forward_ = register(
    f"policy_loss_(Tensor(a!) logits, Tensor token, {ROWS}, {SOFTMAX}, {OBJECTIVE})"
    " -> (Tensor, Tensor)",
    lambda logits, token, *rest: _run(logits, token, rest, logits),
    lambda logits, *rest: scalars(logits),
)
bump_version_of_first_argument(forward_)
scale_ = register(
    "scale_(Tensor(a!) tensor, Tensor factor) -> ()",
    lambda tensor, factor: implementation("scale_", tensor)(tensor, factor),
    lambda tensor, factor: None,
)
bump_version_of_first_argument(scale_)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_loss, grad_metrics, grad_grad):
    refuse_double_backward("policy_loss")
    if grad_loss is None:
        return (None,)
    return (scaled_gradient(ctx.saved_tensors[0], grad_loss),)


register_gradient(forward, _autograd, _setup_context)


class _InPlace(torch.autograd.Function):
    """The loss whose gradient is written over the logits while they are read."""

    @staticmethod
    def forward(ctx, logits, *rest):
        storage = logits.detach()
        loss, metrics = forward_(storage, *rest)
        ctx.save_for_backward(storage)
        ctx.mark_non_differentiable(metrics)
        ctx.set_materialize_grads(False)
        ctx.arguments = 1 + len(rest)
        return loss, metrics

    @staticmethod
    def backward(ctx, grad_loss, grad_metrics):
        if grad_loss is None:
            return (None,) * ctx.arguments
        (grad_logits,) = saved_tensors(ctx, "policy_loss")
        others = (None,) * (ctx.arguments - 1)
        if torch.compiler.is_compiling():  # a mutating operation would copy the buffer here
            return grad_logits * grad_loss, *others
        refuse_double_backward("policy_loss")
        scale_(grad_logits, grad_loss)
        return grad_logits, *others


def policy_loss(
    logits: Tensor,
    token: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    correction: Tensor | None = None,
    penalty: Tensor | None = None,
    entropy_weight: Tensor | None = None,
    nll_weight: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    keep: Tensor | None = None,
    algorithm: str | Algorithm = "grpo",
    weight: Tensor | None = None,
    inplace: bool = False,
    group: ProcessGroup | None = None,
    **coefficients: float | str,
) -> LossOutput:
    """Returns the loss of sampled tokens, its gradient made in the same pass over the logits.

        loss = Σ_t weight_t · (correction_t·gate(log π, log r, A) + kl_coef·KL(π, π_ref)
                               + penalty_t·|log π − log π_old|)
               − entropy_coef·Σ_t entropy_weight_t·H − Σ_t nll_weight_t·log π

    Gate, ratio level and coefficients are the algorithm's (rlkern.algorithms). logits[b, t] scores
    token[b, t]: nothing is shifted here. Without old_logprob the batch is on policy, ratio 1.
    Token-level objectives read the logits once and write their gradient once; where the ratio is a
    sequence's (GSPO) or the vocabulary is split (group), the logits are read twice. The loss is
    always the sum: token_logprob and then token_objective(reduction="none") give its terms.

    Arguments
        logits        (B, T, V) or (N, V) float of any width, the last dimension contiguous
        token         (B, T) int64 or int32; any value where mask is False
        advantage     (B, T), or one per answer, (B,) or (B, 1), float; with cu_seqlens (N,) or (S,)
        mask          (B, T) bool, True counts; other rows are not read, whatever they hold
        old_logprob   (B, T) log π_old, of the policy that sampled (or of the last refresh); where
                      it is NaN, as samplers report what they do not know, the ratio is 1
        ref_logprob   (B, T) log π_ref; needed when kl_coef is not 0
        correction    factor of the gate's loss, from rlkern.rollout_correction; advantage's shapes
        penalty       (B, T) ≥ 0: KL-Cov's pull to π_old (arXiv 2505.22617) on the tokens it
                      chooses. verl multiplies it by the correction, too: multiply it before
        entropy_weight  (B, T) the weight of the entropy term in place of weight, such as TRL's
                      mean over tokens, whatever the loss; verl and OpenRLHF take the loss's own
        nll_weight    (B, T) adds −log π of the tokens that are to be imitated, as NeMo's VAPO does
                      with right answers. What weight 0 excludes is not read here either
        cu_seqlens    (S + 1,) int32 or int64: sequence i is the flat rows cu_seqlens[i] to
                      cu_seqlens[i + 1]; without it a sequence is a row of (B, T)
        temperature   a number > 0, or a float tensor that broadcasts to (B, T)
        softcap, keep  as in rlkern.token_logprob
        weight        (B, T) weight of each token; by default aggregate.token_weight(mask) with
                      the algorithm's mode. Give it when the batch is split: it has the counts
        algorithm     a name that `rlkern algorithms` lists, or an rlkern.Algorithm, also one that
                      dataclasses.replace has made of another
        inplace       write the gradient over the logits, which must not be used afterwards and be
                      no leaf
        group         as in rlkern.token_logprob: the ranks hold slices of the vocabulary, and each
                      gets the loss of the whole and its slice's gradient, made by the backward
        coefficients  kl_coef, kl_estimator, entropy_coef, and the algorithm's own, such as
                      clip_low and clip_high; and, whatever the algorithm,
                      level: whose ratio the gate sees (token, sequence, sequence_token, product),
                      by default the algorithm's own; TRL's importance_sampling_level;
                      log_ratio_min ≤ 0, log_ratio_max ≥ 0: bounds of the log ratio that the gate
                      sees, by default infinite; verl's are ±20 for tokens and at most 10 for GSPO;
                      kl_max: the KL term is within ±kl_max, by default infinite; verl's is 10.
                      Beyond a bound the gradient is 0, but that of k1+ and k3+ stays
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
    if inplace:
        check.overwritable(op, logits)
    shape = logits.shape[:-1]
    given = LossArguments(
        advantage, mask, old_logprob, ref_logprob, correction, penalty, entropy_weight, nll_weight,
        cu_seqlens, weight, algorithm, coefficients,
    )  # fmt: skip
    checked = checked_arguments(op, logits, shape, given)
    check.like(op, "token", token, shape, logits, check.INTEGERS)
    grid = as_grid(op, logits)
    part = None if group is None else sharded.slice_of(op, grid, group)
    whole = grid if part is None else part.whole
    check.token_values(op, token, mask, whole.shape[-1])
    token, rows = token_vector(token, grid), row_vectors(checked.rows, grid)
    softmax = make_softmax(op, whole, shape, mask, temperature, softcap, keep)
    if part is not None:
        scored = sharded.score(part, grid, token, rows.weight != 0, softmax, inplace)
        loss, metrics, _, _ = token_objective(
            scored.logprob, scored.entropy, *rows, *checked.operator_form()
        )
        return LossOutput(loss, metrics)
    arguments = (token, *rows, *softmax, *checked.operator_form())
    differentiable = torch.is_grad_enabled() and logits.requires_grad
    if inplace and differentiable:
        return LossOutput(*_InPlace.apply(grid, *arguments))
    loss, metrics, _ = forward(grid, *arguments, differentiable)
    return LossOutput(loss, metrics)
