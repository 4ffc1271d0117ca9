# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose bfloat16 weights lie, while answers are sampled, as the processor's products
read them: torch's own product puts them into that order again for each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

if TYPE_CHECKING:
    from rlkern.trainer.models.policy import Policy

# Tokens of an answer from which on packing saves more time than it takes, which is what nine tokens
# save.
PAYS = 16
# Rows, inputs and outputs of the products that are compared: long sums show another order of them.
_LOOKED_AT = ((1, 4864, 64), (16, 4864, 64), (16, 64, 64))


@cache
def unavailable() -> str | None:
    """Returns why weights cannot be packed here; None if they can, and products stay the same.

    Of sums of thousands of terms an element in thousands may still have another last bit: where one
    row is read, oneDNN may divide them otherwise (benchmarks/LOG.md). An answer's log-probabilities
    are those that it was drawn by, either way.
    """
    if not torch.backends.mkldnn.is_available():
        return "torch is built without oneDNN"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 products for this processor"
    generator = torch.Generator().manual_seed(0)
    for rows, inputs, outputs in _LOOKED_AT:
        x, weight, bias = (
            torch.randn(shape, generator=generator).bfloat16()
            for shape in ((rows, inputs), (outputs, inputs), (outputs,))
        )
        try:
            found = _product(x, _packed(weight), bias)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
            return f"torch {torch.__version__}: {str(error).splitlines()[0]}"
        if not torch.equal(found, linear(x, weight, bias)):
            return "products with packed weights are rounded differently on this processor"
    return None


def pays(policy: Policy, new_tokens: int) -> bool:
    """Returns whether answers of so many tokens are sampled faster with packed weights."""
    if policy.device.type != "cpu" or not policy.low_precision:
        return False
    # Autocast keeps no copies of frozen weights: it rounds them for each token.
    frozen = policy.mixed and not all(p.requires_grad for p in policy.model.parameters())
    enabled = bool(torch.backends.mkldnn.enabled)
    return enabled and (frozen or new_tokens >= PAYS) and unavailable() is None


@contextmanager
def packed(policy: Policy) -> Iterator[None]:
    """Lets the linear layers of a policy compute with packed weights, as they are now, and no
    gradient. Experts that are one tensor stay as they are, and so does what has its own forward."""
    layers = [layer for layer in policy.model.modules() if _is_plain(layer)]
    try:
        for layer in layers:
            layer.forward = _forward(layer.weight, layer.bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _is_plain(layer: torch.nn.Module) -> bool:
    known = type(layer) is torch.nn.Linear and type(layer.weight) is torch.nn.Parameter
    return known and "forward" not in layer.__dict__


def _forward(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Returns what computes as a linear layer does, from its weights of now."""
    own = _packed(weight.detach().bfloat16())
    rounded = None if bias is None else bias.detach().bfloat16()

    def forward(x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            if not torch.is_autocast_enabled("cpu"):  # as a router asks for
                return linear(x, weight, bias)
            x = x.bfloat16()
        return _product(x, own, rounded)

    return forward


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _product(x: Tensor, packed_weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed_weight, bias, "none", [], "")
