# SPDX-License-Identifier: Apache-2.0
"""A linear head whose rows, the vocabulary, are split over the ranks of a process group.

As sharded.py does it for logits: five numbers per row travel forward. Backward each rank knows the
gradient of its part of the head alone, and of what all ranks hold the sum over them.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from rlkern.backends.eager.token_logprob import ACCUMULATION_DTYPE, Scored, Softmax
from rlkern.ops._library import refuse_double_backward, upstream_of_scores
from rlkern.ops._linear_head import Head
from rlkern.ops._sharded import Slice, combine, gather_scores, in_slice


class _Replicated(torch.autograd.Function):
    """A tensor that every rank holds: each gives its part of the gradient, all get the sum."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        refuse_double_backward("linear_token_logprob")
        total = grad.to(ACCUMULATION_DTYPE[grad.dtype], copy=True)
        dist.all_reduce(total, group=ctx.group)
        return total.to(grad.dtype), None


class _Rows(torch.autograd.Function):
    """What is left of whole rows, differentiable in hidden states and a rank's part of a head."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, lora_a, lora_b, *rest):
        lora_scale, token, mask, inv_temperature, softcap, keep, wave, gathered = rest
        whole = combine(gathered.unbind(1), mask)
        tensors = hidden, weight, bias, lora_a, lora_b, token, mask, inv_temperature, keep
        ctx.save_for_backward(*tensors, *whole.statistics)
        ctx.numbers = lora_scale, softcap, wave
        ctx.mark_non_differentiable(whole.row_max, whole.sum_pi_squared)
        ctx.set_materialize_grads(False)
        return tuple(whole)

    @staticmethod
    def backward(ctx, *grads):
        refuse_double_backward("linear_token_logprob")
        upstream = upstream_of_scores(grads)
        if upstream is None:
            return (None,) * 13
        *sources, token, mask, inv_temperature, keep = ctx.saved_tensors[:9]
        lora_scale, softcap, wave = ctx.numbers
        wants = list(ctx.needs_input_grad[:5])
        made = torch.ops.rlkern.linear_token_logprob_backward(
            *sources, lora_scale, token, mask, inv_temperature, softcap, keep, wave,
            *ctx.saved_tensors[9:], *upstream, wants,
        )  # fmt: skip
        return *(g if wanted else None for g, wanted in zip(made, wants)), *(None,) * 8


def score(
    part: Slice, hidden: Tensor, head: Head, token: Tensor, mask: Tensor | None, softmax: Softmax,
    wave: int,
) -> Scored:  # fmt: skip
    """Returns what is left of whole rows (N,), the same bits on every rank.

    Tokens and kept sets are of the whole vocabulary, the head is this rank's part of it.
    """
    token, softmax = in_slice(part, head.weight.shape[0], token, softmax)

    def replicated(x: Tensor | None) -> Tensor | None:
        return None if x is None else _Replicated.apply(x, part.group)

    sources = replicated(hidden), head.weight, head.bias, replicated(head.lora_a), head.lora_b
    rest = (head.lora_scale, token, mask, *softmax, wave)
    constants = (None if x is None else x.detach() for x in sources)
    scored = torch.ops.rlkern.linear_token_logprob(*constants, *rest)
    return Scored(*_Rows.apply(*sources, *rest, gather_scores(part, token, scored)))
