# SPDX-License-Identifier: Apache-2.0
"""What the losses are timed on: logits as an lm_head leaves them, and the vectors beside them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.backends import on_host

SEQUENCES = 8
KEPT = 64
SOFTCAP = 30.0
# Of GRPO and of GSPO with a KL term; the clip widths of GSPO are those of its paper, §5.1.
GRPO: dict[str, Any] = {"algorithm": "grpo", "kl_coef": 0.04, "clip_low": 0.2, "clip_high": 0.2}
GSPO: dict[str, Any] = {"algorithm": "gspo", "kl_coef": 0.04, "clip_low": 3e-4, "clip_high": 4e-4}

# Why a product of bfloat16 is not timed: torch converts and rounds, which takes minutes.
IMITATED = "this processor imitates bfloat16 products"


def products_are_native(dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether matrix products of a dtype are computed by instructions, as torch tells from the
    processor's instruction set."""
    if dtype != torch.bfloat16 or not on_host(torch.device(device)):
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Inputs:
    """n rows of v logits in SEQUENCES sequences; the memory of the logits is touched."""

    def __init__(self, n: int, v: int, dtype: torch.dtype, device: str = "cpu"):
        random = torch.Generator(device).manual_seed(0)
        shape = (SEQUENCES, n // SEQUENCES)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random, device=device)

        self.source = normal(*shape, v).to(dtype)
        self.logits = self.source.clone()
        self.token = torch.randint(v, shape, generator=random, device=device)
        self.advantage = normal(*shape)
        self.old = normal(*shape) * 0.1 - math.log(v)
        self.ref = self.old + 0.1 * normal(*shape)
        self.mask = torch.ones(shape, dtype=torch.bool, device=device)
        self.weight = torch.full(shape, 1.0 / n, device=device)
        start = torch.randint(v, (*shape, 1), generator=random, device=device)
        spread = torch.arange(min(KEPT, v), device=device) * max(v // KEPT, 1)
        self.keep = (start + spread) % v  # none of them twice

    def reset(self) -> None:
        """Writes fresh logits over what the last call left."""
        self.logits.copy_(self.source)

    def non_leaf(self) -> Tensor:
        """Returns the logits as a model hands them over: the output of an operation."""
        anchor = torch.zeros((), device=self.logits.device, requires_grad=True)
        return Output.apply(anchor, self.logits)

    def loss(self, logits: Tensor, inplace: bool = False, **options) -> Tensor:
        """Returns rlkern's loss of these logits, of GRPO where the options do not say otherwise."""
        return rlkern.policy_loss(
            logits, self.token, self.advantage, self.mask, old_logprob=self.old,
            ref_logprob=self.ref, weight=self.weight, inplace=inplace, **(GRPO | options),
        ).loss  # fmt: skip

    def fused(self, inplace: bool, **options) -> None:
        """Runs rlkern's loss and gradient."""
        self.loss(self.non_leaf(), inplace, **options).backward()

    def other(self, loss_function: Callable[..., Tensor], *extra) -> None:
        """Runs the loss and gradient of a baseline."""
        rows = (self.token, self.advantage, self.weight, self.old, self.ref)
        loss_function(self.non_leaf(), *rows, *extra).backward()


class LinearInputs:
    """n hidden states in SEQUENCES sequences, a head of v columns, and the vectors beside them."""

    def __init__(self, n: int, h: int, v: int, device: str, dtype: torch.dtype = torch.bfloat16):
        random = torch.Generator(device).manual_seed(0)
        shape = (SEQUENCES, n // SEQUENCES)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random, device=device)

        self.hidden = normal(*shape, h).to(dtype).requires_grad_()
        self.head = (normal(v, h) / math.sqrt(h)).to(dtype).requires_grad_()
        self.token = torch.randint(v, shape, generator=random, device=device)
        self.advantage = normal(SEQUENCES, 1).expand(shape).contiguous()
        self.old = normal(*shape) * 0.1 - math.log(v)
        self.ref = self.old + 0.1 * normal(*shape)
        self.mask = torch.ones(shape, dtype=torch.bool, device=device)
        self.weight = torch.full(shape, 1.0 / n, device=device)
        self.flops = 6 * n * h * v


class Output(torch.autograd.Function):
    """Stands for the lm_head: hands out stored logits and takes their gradient, at no cost."""

    @staticmethod
    def forward(ctx, anchor, logits):
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros((), device=grad.device), None
