# SPDX-License-Identifier: Apache-2.0
"""The operation linear_token_logprob: what token_logprob gives, from hidden states and a head.

The logits of a wave live while it is scored and are made again by the backward: 8·N·H·V operations
with all gradients, 2 for the scores alone.
"""

import torch
from torch import Tensor

from rlkern.backends import implementation
from rlkern.ops.library import refuse_double_backward, register, upstream_of_scores
from rlkern.ops.linear_head import Gradients, Head, Waves
from rlkern.reference.token_logprob import (
    Scored,
    Softmax,
    Statistics,
    Upstream,
    accumulation_dtype,
)

HEAD = "Tensor weight, Tensor? bias, Tensor? lora_a, Tensor? lora_b, float lora_scale"
SOFTMAX = "Tensor? inv_temperature, float softcap, Tensor? keep"


class WaveRows:
    """What the row kernels need beside the logits, for a wave of the counted rows at a time."""

    def __init__(self, waves: Waves, token: Tensor, softmax: Softmax):
        self.token = waves.take(token)
        self.inv_temperature, self.keep = (
            None if x is None else waves.take(x) for x in (softmax.inv_temperature, softmax.keep)
        )
        self.softcap = softmax.softcap

    def of(self, begin: int, end: int) -> tuple[Tensor, None, Softmax]:
        """Returns (token, mask, softmax) of a wave as one row of (B, T)."""
        rate, keep = (
            None if x is None else x[begin:end].unsqueeze(0)
            for x in (self.inv_temperature, self.keep)
        )
        return self.token[begin:end].unsqueeze(0), None, Softmax(rate, self.softcap, keep)


def score_wave(waves: Waves, rows: WaveRows, begin: int, end: int) -> Scored:
    """Returns what is left of the rows of a wave, each (1, n)."""
    logits = waves.logits(begin, end).unsqueeze(0)
    return implementation("token_logprob", logits)(logits, *rows.of(begin, end))


def overwrite_wave(
    waves: Waves, rows: WaveRows, span: tuple[int, int], statistics: Statistics, upstream: Upstream
) -> Tensor:
    """Returns the gradient (n, V) of a wave's logits, written over them."""
    logits = waves.logits(*span).unsqueeze(0)
    implementation("token_logprob_backward", logits)(
        logits, *rows.of(*span), statistics, upstream, logits
    )
    waves.overwritten()
    return logits[0]


def _forward(hidden, *rest):
    head, token, mask, softmax, wave = Head(*rest[:5]), *rest[5:7], Softmax(*rest[7:10]), rest[10]
    waves = Waves(head, hidden, mask, wave)
    rows = WaveRows(waves, token, softmax)
    dtype = accumulation_dtype(head.weight.dtype)
    found = hidden.new_empty((len(Scored._fields), waves.count), dtype=dtype)
    for begin, end in waves.spans():
        found[:, begin:end] = torch.cat(score_wave(waves, rows, begin, end))
    results = hidden.new_zeros((len(Scored._fields), hidden.shape[0]), dtype=dtype)
    for into, x in zip(results, found):
        waves.put(into, x)
    return tuple(x.clone() for x in results)


def _forward_fake(hidden, weight, *rest):
    dtype = accumulation_dtype(weight.dtype)
    return tuple(hidden.new_empty(hidden.shape[0], dtype=dtype) for _ in Scored._fields)


def _backward(hidden, *rest):
    head, token, mask, softmax, wave = Head(*rest[:5]), *rest[5:7], Softmax(*rest[7:10]), rest[10]
    wants = rest[-1]
    waves = Waves(head, hidden, mask, wave)
    rows = WaveRows(waves, token, softmax)
    statistics = [waves.take(x).unsqueeze(0) for x in rest[11:14]]
    upstream = [None if x is None else waves.take(x).unsqueeze(0) for x in rest[14:17]]
    gradients = Gradients(waves, wants)
    for begin, end in waves.spans():
        known = Statistics(*(x[:, begin:end] for x in statistics))
        arriving = Upstream(*(None if x is None else x[:, begin:end] for x in upstream))
        grad_logits = overwrite_wave(waves, rows, (begin, end), known, arriving)
        gradients.add(begin, end, grad_logits)
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
    ctx.mark_non_differentiable(output[2], output[4])
    ctx.set_materialize_grads(False)


def _autograd(ctx, *grads):
    refuse_double_backward("linear_token_logprob")
    upstream = upstream_of_scores(grads)
    wants = list(ctx.needs_input_grad[:5])
    if upstream is None:
        return (None,) * 12
    hidden, weight, bias, lora_a, lora_b, token, mask, rate, keep, *statistics = ctx.saved_tensors
    made = backward(
        hidden, weight, bias, lora_a, lora_b, ctx.lora_scale, token, mask, rate, ctx.softcap, keep,
        ctx.wave, *statistics, *upstream, wants,
    )  # fmt: skip
    return *(g if wanted else None for g, wanted in zip(made, wants)), *(None,) * 7


torch.library.register_autograd(
    "rlkern::linear_token_logprob", _autograd, setup_context=_setup_context
)
