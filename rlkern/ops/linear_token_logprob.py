# SPDX-License-Identifier: Apache-2.0
"""The operation linear_token_logprob: what token_logprob gives, from hidden states and a head.

The logits of a wave live while it is scored and are made again by the backward: 8·N·H·V operations
with all gradients, 2 for the scores alone.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlkern.backends.eager.token_logprob import (
    ACCUMULATION_DTYPE,
    Companions,
    Scored,
    Softmax,
    Statistics,
    Upstream,
)
from rlkern.ops import _check as check
from rlkern.ops import _linear_sharded as linear_sharded
from rlkern.ops._library import (
    refuse_double_backward,
    register,
    register_gradient,
    upstream_of_scores,
)
from rlkern.ops._linear_arguments import LinearArguments, Lora, checked_head, checked_softmax
from rlkern.ops._linear_head import Gradients, Head, Waves, one_row
from rlkern.ops._rows import SOFTMAX, mask_vector, token_vector
from rlkern.ops.token_logprob import CompanionLogprob, TokenLogprob, results

HEAD = "Tensor weight, Tensor? bias, Tensor? lora_a, Tensor? lora_b, float lora_scale"


def _in_waves(score, fields, hidden, *rest):
    """Returns what score(waves, begin, end) gives for each wave, together; 0 where masked."""
    head, token, mask, softmax, wave = Head(*rest[:5]), *rest[5:7], Softmax(*rest[7:10]), rest[10]
    waves = Waves(head, hidden, token, mask, softmax, wave)
    dtype = ACCUMULATION_DTYPE[head.weight.dtype]
    found = hidden.new_empty((len(fields), waves.count), dtype=dtype)
    for begin, end in waves.spans():
        found[:, begin:end] = torch.cat(score(waves, begin, end))
    results = hidden.new_zeros((len(fields), hidden.shape[0]), dtype=dtype)
    for into, x in zip(results, found):
        waves.put(into, x)
    return [x.clone() for x in results]


def _forward(hidden, *rest):
    return tuple(_in_waves(Waves.score, Scored._fields, hidden, *rest))


def _forward_fake(hidden, weight, *rest):
    dtype = ACCUMULATION_DTYPE[weight.dtype]
    return tuple(hidden.new_empty(hidden.shape[0], dtype=dtype) for _ in Scored._fields)


def _forward_with_companions(hidden, *rest):
    fields = Scored._fields + Companions._fields
    *found, is_argmax = _in_waves(Waves.score_with_companions, fields, hidden, *rest)
    return *found, is_argmax != 0


def _forward_with_companions_fake(hidden, weight, *rest):
    scored = _forward_fake(hidden, weight)
    return *scored, torch.empty_like(scored[0]), torch.empty_like(scored[0], dtype=torch.bool)


def _backward(hidden, *rest):
    head, token, mask, softmax, wave = Head(*rest[:5]), *rest[5:7], Softmax(*rest[7:10]), rest[10]
    waves = Waves(head, hidden, token, mask, softmax, wave)
    statistics, upstream = waves.take(rest[11:14]), waves.take(rest[14:17])
    gradients = Gradients(waves, rest[-1])
    for span in waves.spans():
        known, arriving = Statistics(*one_row(statistics, *span)), one_row(upstream, *span)
        gradients.add(*span, waves.overwrite(*span, known, Upstream(*arriving)))
    return tuple(gradients.results(hidden))


def gradients_fake(hidden: Tensor, head: Head, wants: list[bool]) -> tuple[Tensor, ...]:
    """Returns tensors shaped like the results of Gradients."""
    sources = (hidden, *head[:4])
    return tuple(
        torch.empty_like(x) if wanted and x is not None else hidden.new_empty(0)
        for x, wanted in zip(sources, wants)
    )


forward = register(
    f"linear_token_logprob(Tensor hidden, {HEAD}, Tensor token, Tensor? mask, {SOFTMAX}, int wave)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
forward_with_companions = register(
    f"linear_token_logprob_companions(Tensor hidden, {HEAD}, Tensor token, Tensor? mask, {SOFTMAX},"
    " int wave) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_with_companions,
    _forward_with_companions_fake,
)
backward = register(
    f"linear_token_logprob_backward(Tensor hidden, {HEAD}, Tensor token, Tensor? mask, {SOFTMAX},"
    " int wave, Tensor entropy, Tensor row_max, Tensor log_sum, Tensor? grad_logprob,"
    " Tensor? grad_entropy, Tensor? grad_lse, bool[] wants)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    lambda hidden, *rest: gradients_fake(hidden, Head(*rest[:5]), rest[-1]),
)


def _setup_context(ctx, inputs, output):
    tensors = [x for x in inputs if x is None or isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors, *output[1:4])
    ctx.lora_scale, ctx.softcap, ctx.wave = inputs[5], inputs[9], inputs[11]
    ctx.mark_non_differentiable(output[2], *output[4:])
    ctx.set_materialize_grads(False)


def _autograd(ctx, *grads):
    refuse_double_backward("linear_token_logprob")
    upstream = upstream_of_scores(grads)
    wants = list(ctx.needs_input_grad[-5:])
    if upstream is None:
        return (None,) * 5
    *sources, token, mask, inv_temperature, keep = ctx.saved_tensors[:9]
    statistics = ctx.saved_tensors[9:]
    made = backward(
        *sources, ctx.lora_scale, token, mask, inv_temperature, ctx.softcap, keep, ctx.wave,
        *statistics, *upstream, wants,
    )  # fmt: skip
    return tuple(g if wanted else None for g, wanted in zip(made, wants))


for _operation in (forward, forward_with_companions):
    register_gradient(_operation, _autograd, _setup_context, inputs=5)


def scored_rows(
    door: LinearArguments, token: Tensor, mask: Tensor | None, softmax: Softmax
) -> Scored:
    """Returns what is left of the rows, each (N,)."""
    token, mask = token.flatten(), None if mask is None else mask.flatten()
    if door.part is not None:
        return linear_sharded.score(
            door.part, door.hidden, door.head, token, mask, softmax, door.wave
        )
    return Scored(*forward(door.hidden, *door.head, token, mask, *softmax, door.wave))


def linear_token_logprob(
    hidden: Tensor,
    weight: Tensor,
    token: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    logit_scale: float = 1.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    keep: Tensor | None = None,
    wave: int | None = None,
    group: ProcessGroup | None = None,
    companions: bool = False,
) -> TokenLogprob | CompanionLogprob:
    """Returns what token_logprob(hidden·weightᵀ + bias, token) does, without storing the logits.

        logits = logit_scale·(hidden·weightᵀ + lora.scale·(hidden·lora.aᵀ)·lora.bᵀ + bias)

    A wave of rows is scored at a time; the backward makes its logits again and puts their gradient
    in their place: 8·N·H·V operations with all gradients, 6 with a frozen head. Where all logits
    have room, token_logprob of them is faster: 6. hidden[b, t] scores token[b, t]: nothing is
    shifted here.

    Arguments
        hidden       (..., H) float, of the weight's dtype or narrower
        weight       (V, H) float16, bfloat16, float32 or float64: the head's, as nn.Linear has it
        token        (...) int64 or int32; any value where mask is False
        bias         (V,) of the weight's dtype
        lora         Lora(a, b, scale), of the weight's dtype: never merged
        logit_scale  a number > 0 (Cohere's logit_scale, 1 / Granite's logits_scaling)
        temperature, softcap, mask, keep  as in rlkern.token_logprob; rows that do not count are
                     left out of every product (on a GPU their number is waited for)
        wave         rows of logits held at a time, by default 320 MiB of them (512 on a GPU)
        group        the process group whose ranks hold the vocabulary in slices, in rank order and
                     of any size above 0: weight, bias and lora.b are this rank's rows of the head,
                     token and keep are ids of the whole vocabulary; the rest is the same on all
        companions   also mean_logit and is_argmax, as in rlkern.token_logprob; not with group
    Returns
        TokenLogprob(logprob, entropy, lse, sum_pi_squared), each (...) float32 (float64 for
        float64); with companions CompanionLogprob, which ends in mean_logit and is_argmax
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device, or a DTensor
        RuntimeError           on double backward
    Gradient
        to hidden, weight, bias, lora.a and lora.b, each made only where it is needed; those of
        the head are summed over waves in float32. With group, hidden and lora.a get the sum over
        the ranks, provided that all make the same loss

    >>> hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]]).log1p()
    >>> out = linear_token_logprob(hidden, weight, torch.tensor([1]))
    >>> round(out.logprob.exp().item(), 4)
    0.8
    """
    op = "linear_token_logprob"
    check.whole_rows(op, companions, group)
    door = checked_head(op, hidden, weight, bias, lora, logit_scale, wave, group)
    shape = hidden.shape[:-1]
    check.like(op, "token", token, shape, hidden, check.INTEGERS)
    if mask is not None:
        check.like(op, "mask", mask, shape, hidden, (torch.bool,))
    check.token_values(op, token, mask, door.grid.shape[-1])
    softmax = checked_softmax(op, door, shape, mask, temperature, softcap, keep)
    rows = token_vector(token, door.grid), mask_vector(mask, door.grid)
    if not companions:
        return results(scored_rows(door, *rows, softmax), shape)
    flat = (None if x is None else x.flatten() for x in rows)
    scored = forward_with_companions(door.hidden, *door.head, *flat, *softmax, door.wave)
    return results(scored, shape)
