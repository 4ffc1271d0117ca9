# SPDX-License-Identifier: Apache-2.0
"""The operation linear_policy_loss: loss, metrics and all gradients from hidden states and a head.

The loss is a scalar, so the gradient of a wave's logits is made as soon as its objective is known,
while they are there: 6·N·H·V operations, 4 with a frozen head. Where a sequence decides, waves are
of whole sequences; where one does not fit, the logits are made twice: 8·N·H·V.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlkern.algorithms import Algorithm
from rlkern.backends import implementation
from rlkern.backends.eager.token_logprob import (
    ACCUMULATION_DTYPE,
    Scored,
    Softmax,
    Statistics,
    Upstream,
)
from rlkern.backends.eager.token_objective import METRICS, Objective, Rows
from rlkern.ops import _check as check
from rlkern.ops._library import (
    refuse_double_backward,
    register,
    register_gradient,
    scaled_gradients,
)
from rlkern.ops._linear_arguments import Lora, checked_head, checked_softmax
from rlkern.ops._linear_head import Gradients, Head, Waves, one_row
from rlkern.ops._loss_output import LossOutput
from rlkern.ops._objective import (
    OBJECTIVE,
    ROWS,
    LossArguments,
    checked_arguments,
)
from rlkern.ops._rows import SOFTMAX, row_vectors, token_vector
from rlkern.ops.linear_token_logprob import HEAD, gradients_fake, scored_rows
from rlkern.ops.token_objective import forward as token_objective

# The head has a weight, too.
_ROWS = ROWS.replace("Tensor weight", "Tensor row_weight")


class _Loss:
    """One evaluation: the counted rows, what is known of them, and the objective."""

    def __init__(self, hidden, head, token, rows, softmax, bounds, objective, wave):
        flat = [None if x is None else x.reshape(-1) for x in rows]
        self.waves = Waves(head, hidden, token, rows.weight != 0, softmax, wave)
        self.known = self.waves.take(flat)
        self.objective = objective
        self.bounds = None if objective.level == "token" else self._counted_bounds(rows, bounds)
        shape, dtype = (len(Scored._fields), self.waves.count), rows.weight.dtype
        self.scored = hidden.new_zeros(shape, dtype=dtype)

    def _counted_bounds(self, rows: Rows, bounds: Tensor | None) -> Tensor:
        """Returns where each sequence begins and the last ends among the counted rows."""
        if bounds is None:
            B, T = rows.weight.shape
            bounds = torch.arange(0, B * T + 1, max(T, 1), device=rows.weight.device)
        before = torch.nn.functional.pad((rows.weight.reshape(-1) != 0).cumsum(0), (1, 0))
        return before[bounds]

    def whole_sequences(self) -> list[tuple[int, int]] | None:
        """Returns waves of whole sequences, or None where one is longer than a wave."""
        if self.bounds is None:
            return self.waves.spans()
        spans: list[tuple[int, int]] = []
        begin = last = 0
        for end in self.bounds.tolist()[1:]:
            if end - last > self.waves.wave:
                return None
            if end - begin > self.waves.wave:
                spans.append((begin, last))
                begin = last
            last = end
        return [*spans, (begin, last)] if last > begin else spans

    def score(self, begin: int, end: int) -> None:
        """Keeps what is left of the rows of a wave."""
        self.scored[:, begin:end] = torch.cat(self.waves.score(begin, end))

    def upstream(self, begin: int, end: int) -> Upstream:
        """Returns the gradients in log π and entropy of rows that are whole sequences."""
        logprob, entropy, *known = one_row((*self.scored[:2], *self.known), begin, end)
        bounds = None
        if self.bounds is not None:
            inside = (self.bounds >= begin) & (self.bounds <= end)
            bounds = self.bounds[inside] - begin
        objective = implementation("token_objective", logprob)
        return Upstream(*objective(logprob, entropy, Rows(*known), bounds, self.objective)[2:])

    def differentiate(self, begin: int, end: int, upstream: Upstream, into: Gradients) -> None:
        """Adds the gradients of a wave."""
        statistics = Statistics(*one_row(self.scored[1:4], begin, end))
        into.add(begin, end, self.waves.overwrite(begin, end, statistics, upstream))

    def gradients(self, wants: list[bool]) -> Gradients:
        """Scores all rows and returns the gradients that are wanted."""
        spans = self.whole_sequences()
        into = Gradients(self.waves, wants)
        for begin, end in spans or ():
            self.score(begin, end)
            if any(wants):
                self.differentiate(begin, end, self.upstream(begin, end), into)
        if spans is not None:
            return into
        for span in self.waves.spans():
            self.score(*span)
        if any(wants):
            grads = [x for x in self.upstream(0, self.waves.count) if x is not None]
            for begin, end in self.waves.spans():
                part = Upstream(*(x[:, begin:end].contiguous() for x in grads))
                self.differentiate(begin, end, part, into)
        return into


def _parts(rest):
    """Returns what the operator's arguments after hidden stand for."""
    end = 6 + len(Rows._fields)
    head, token, rows = Head(*rest[:5]), rest[5], Rows(*rest[6:end])
    softmax, (bounds, gate, level, kl, coefficients, wave, _) = (
        Softmax(*rest[end:][:3]),
        rest[end + 3 :],
    )
    objective = Objective.of(gate, level, kl, coefficients.tolist())
    return head, token, rows, softmax, bounds, objective, wave


def _forward(hidden, *rest):
    head, token, rows, softmax, bounds, objective, wave = _parts(rest)
    loss = _Loss(hidden, head, token.reshape(-1), rows, softmax, bounds, objective, wave)
    gradients = loss.gradients(rest[-1])
    # Once more over all rows at once: the sum is then that of the logits path, to the last bit.
    everywhere = torch.zeros(2, hidden.shape[0], dtype=loss.scored.dtype, device=hidden.device)
    for into, x in zip(everywhere, loss.scored):
        loss.waves.put(into, x)
    logprob, entropy = everywhere.reshape(2, *token.shape)
    value, metrics, _, _ = implementation("token_objective", logprob)(
        logprob, entropy, rows, bounds, objective
    )
    return value, metrics, *gradients.results(hidden)


def _forward_fake(hidden, *rest):
    head = Head(*rest[:5])
    dtype = ACCUMULATION_DTYPE[head.weight.dtype]
    scalars = hidden.new_empty((), dtype=dtype), hidden.new_empty(len(METRICS), dtype=dtype)
    return *scalars, *gradients_fake(hidden, head, rest[-1])


forward = register(
    f"linear_policy_loss(Tensor hidden, {HEAD}, Tensor token, {_ROWS}, {SOFTMAX}, {OBJECTIVE},"
    " int wave, bool[] wants)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output[2:])
    ctx.wants = inputs[-1]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_loss, *unused):
    made = [x if wanted else None for x, wanted in zip(ctx.saved_tensors, ctx.wants)]
    refuse_double_backward("linear_policy_loss")
    if grad_loss is None:
        return (None,) * 5
    return tuple(scaled_gradients(made, grad_loss))


register_gradient(forward, _autograd, _setup_context, inputs=5)


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
    penalty: Tensor | None = None,
    entropy_weight: Tensor | None = None,
    nll_weight: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    keep: Tensor | None = None,
    algorithm: str | Algorithm = "grpo",
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
    door = checked_head(op, hidden, head_weight, bias, lora, logit_scale, wave, group)
    shape = hidden.shape[:-1]
    given = LossArguments(
        advantage, mask, old_logprob, ref_logprob, correction, penalty, entropy_weight, nll_weight,
        cu_seqlens, weight, algorithm, coefficients,
    )  # fmt: skip
    checked = checked_arguments(op, hidden, shape, given)
    check.like(op, "token", token, shape, hidden, check.INTEGERS)
    check.token_values(op, token, mask, door.grid.shape[-1])
    token, rows = token_vector(token, door.grid), row_vectors(checked.rows, door.grid)
    softmax = checked_softmax(op, door, shape, mask, temperature, softcap, keep)
    form = checked.operator_form()
    if door.part is not None:
        scored = scored_rows(door, token, rows.weight != 0, softmax)
        logprob, entropy = (x.reshape(token.shape) for x in (scored.logprob, scored.entropy))
        loss, metrics, _, _ = token_objective(logprob, entropy, *rows, *form)
        return LossOutput(loss, metrics.detach())
    sources = (hidden, *door.head[:4])
    recording = torch.is_grad_enabled()
    wants = [recording and x is not None and x.requires_grad for x in sources]
    loss, metrics, *_ = forward(
        door.hidden, *door.head, token, *rows, *softmax, *form, door.wave, wants
    )
    return LossOutput(loss, metrics.detach())
