# SPDX-License-Identifier: Apache-2.0
"""The weights of a head, which PEFT may have wrapped."""

from typing import Any, NamedTuple

from torch import Tensor

from rlkern.ops._linear_arguments import Lora


class HeadWeights(NamedTuple):
    """logits = hidden·weightᵀ + bias, and what a low-rank adapter adds."""

    weight: Tensor
    bias: Tensor | None
    lora: Lora | None


def without_adapter(head: Any) -> Any:
    """Returns the layer that PEFT has wrapped, or the head itself."""
    for name in ("base_layer", "original_module"):
        if hasattr(head, name):
            return without_adapter(getattr(head, name))
    return head


def weights_of(head: Any) -> HeadWeights:
    """Returns the weights of a linear layer, as they count at this moment; Raises ValueError for
    an adapter that is not plain LoRA and TypeError for a layer that is not linear."""
    if hasattr(head, "modules_to_save"):  # a copy that is trained in place of the layer
        copies = [n for n in _active(head) if n in head.modules_to_save]
        return weights_of(head.modules_to_save[copies[0]] if copies else head.original_module)
    if hasattr(head, "base_layer"):
        active = [n for n in _active(head) if _has(head, n)]
        base = weights_of(head.base_layer)
        return _added(head, base, active) if active else base
    weight = getattr(head, "weight", None)
    if weight is None or weight.ndim != 2:
        raise TypeError(f"fused_head: the head must be a linear layer, got {type(head).__name__}")
    return HeadWeights(weight, getattr(head, "bias", None), None)


def _active(head: Any) -> list[str]:
    if head.disable_adapters or getattr(head, "merged", False):
        return []
    names = head.active_adapters
    return [names] if isinstance(names, str) else list(names)


def _has(head: Any, name: str) -> bool:
    return any(name in getattr(head, layers, ()) for layers in head.adapter_layer_names)


def _added(head: Any, base: HeadWeights, active: list[str]) -> HeadWeights:
    """Returns the weights with the low-rank addition of the one adapter that is active."""
    if len(active) > 1:
        raise ValueError(f"fused_head: the head must have one active adapter, got {active}")
    (name,) = active
    variant = getattr(head, "lora_variant", {}).get(name)
    kind = type(variant or head).__name__.replace("DoraLinear", "DoRA")
    if getattr(head, "use_dora", {}).get(name):
        kind = "DoRA"
    plain = all(hasattr(head, x) for x in ("lora_A", "lora_B", "scaling", "lora_dropout"))
    if not plain or kind != "Linear":
        kind = kind if variant or kind == "DoRA" else f"{type(head).__module__}.{kind}"
        raise ValueError(f"fused_head: the head's adapter {name!r} must be plain LoRA, got {kind}")
    dropout = head.lora_dropout[name]
    if head.training and getattr(dropout, "p", 0) > 0:
        raise ValueError(
            f"fused_head: the head's LoRA must have no dropout in training, got {dropout.p}"
        )
    a, b, scale = head.lora_A[name], head.lora_B[name], float(head.scaling[name])
    biases = [x for x in (base.bias, None if b.bias is None else scale * b.bias) if x is not None]
    bias = sum(biases[1:], biases[0]) if biases else None
    return HeadWeights(base.weight, bias, Lora(a.weight, b.weight, scale))


def as_it_counts(head: Any) -> tuple:
    """Returns what decides how a head is computed and trained: equal for equal states of it."""
    weights = weights_of(head)
    tensors = (weights.weight, weights.bias, *(weights.lora or ()))
    trained = [(x.requires_grad, x.dtype) for x in tensors if isinstance(x, Tensor)]
    adapter = (_active(head), head.training) if hasattr(head, "active_adapters") else ()
    return (id(head), type(head), tuple(trained), str(adapter))
