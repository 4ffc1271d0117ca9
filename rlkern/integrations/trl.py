# SPDX-License-Identifier: Apache-2.0
"""What rlkern serves inside TRL: the log-probabilities of every one of its trainers.

GRPO, RLOO, DPO, KTO and SFT of TRL 1.15 and later score their tokens by one function of hidden
states and head, looked up in one place. Its replacement gives every output that TRL may ask for, so
no loss, option or metric of TRL changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import rlkern
from rlkern.integrations._target import Target, Trainer
from rlkern.integrations.head import HeadWeights

_COMPANIONS = {"mean_logits", "is_top1"}


@dataclass
class _Adapted:
    """The head of the forward that runs, and whether token_scores has used its adapter."""

    head: HeadWeights
    used: bool = False


_adapted: ContextVar[_Adapted | None] = ContextVar("adapted", default=None)


@contextlib.contextmanager
def adapted(head: HeadWeights) -> Iterator[None]:
    """Makes token_scores add the adapter of a head inside the with block, once a forward.

    Raises RuntimeError at the end if token_scores was not called: TRL's own function leaves the
    adapter out.
    """
    found = _Adapted(head)
    before = _adapted.set(found)
    try:
        yield
    finally:
        _adapted.reset(before)
    if not found.used:
        raise RuntimeError(
            "rlkern in TRL: the head has an adapter, which TRL's own log-probabilities leave out;"
            ' call rlkern.integrations.patch("trl")'
        )


def token_scores(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    chunk_size: int,
    final_logit_softcapping: float | None = None,
    logit_scale: float = 1.0,
    outputs: tuple[str, ...] = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1"),
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Returns (log π, entropy, log Σp², mean logit, is the token the likeliest) of N tokens.

    As TRL's ChunkedLogProbFunction: all but the first are None unless outputs names them, and
    gradients reach hidden, weight and bias through the first two. chunk_size, TRL's columns of a
    tile, is not read: rlkern holds whole rows, `wave` of them at a time.

    Raises ValueError for a head that DeepSpeed's ZeRO-3 has taken apart: TRL gathers it only for
    the forward, and the gradient needs it again.

    >>> import torch
    >>> hidden, weight, token = torch.zeros(1, 4), torch.ones(2, 4), torch.tensor([1])
    >>> token_scores(hidden, weight, None, token, 1.0, 8, outputs=("is_top1",))
    (tensor([-0.6931]), None, None, None, tensor([False]))
    """
    if hasattr(weight, "ds_id"):
        raise ValueError(
            "rlkern in TRL: the head must be whole while its gradient is made, got one of DeepSpeed"
            " ZeRO-3; use ZeRO-2 or FSDP2, or unpatch"
        )
    lora = None
    if (found := _adapted.get()) is not None:
        found.used, bias, lora = True, found.head.bias, found.head.lora
    scored = rlkern.linear_token_logprob(
        hidden,
        weight.to(hidden.dtype),
        targets,
        bias=None if bias is None else bias.to(hidden.dtype),
        lora=lora and rlkern.Lora(lora.a.to(hidden.dtype), lora.b.to(hidden.dtype), lora.scale),
        temperature=temperature,
        softcap=final_logit_softcapping,
        logit_scale=logit_scale,
        companions=not _COMPANIONS.isdisjoint(outputs),
    )
    companions = scored._asdict()
    return (
        scored.logprob,
        scored.entropy if "entropy" in outputs else None,
        scored.sum_pi_squared.log() if "log_sum_sq_probs" in outputs else None,
        companions["mean_logit"] if "mean_logits" in outputs else None,
        companions["is_argmax"] if "is_top1" in outputs else None,
    )


def _log_prob_function(original: Any, count: Callable[[], None]) -> type:
    class ChunkedLogProbFunction:
        """Stands where TRL's autograd function of this name was."""

        @staticmethod
        def apply(*args, **kwargs):
            count()
            return token_scores(*args, **kwargs)

    return ChunkedLogProbFunction


TRAINER = Trainer(
    "trl",
    ">=1.15,<1.17",
    (
        Target(
            "trl.trainer.utils",
            "_ChunkedLogProbFunction",
            "(ctx, hidden, weight, bias, targets, temperature, chunk_size,"
            " final_logit_softcapping=None, logit_scale=1.0, outputs=('entropy',"
            " 'log_sum_sq_probs', 'mean_logits', 'is_top1'))",
            _log_prob_function,
            called="forward",
        ),
    ),
)
