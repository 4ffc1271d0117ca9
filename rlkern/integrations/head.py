# SPDX-License-Identifier: Apache-2.0
"""Where a language model of transformers makes its logits, found by asking the model itself.

Its forward runs as it is, with its head asked to hand over the hidden states in place of making
logits: mixtures of experts, models in image-text wrappers, hybrids and state-space models need no
case of their own.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkern.ops._linear_arguments import Lora

_AUX_COEF = ("router_aux_loss_coef", "aux_loss_coef")


class Hidden(NamedTuple):
    """What a model's forward gives its head: (B, T, H), and the loss that it adds for its router,
    None without one."""

    states: Tensor
    aux_loss: Tensor | None


class Caught:
    """Stands for the forward of a head: itself, but inside `run` it keeps what it is given.

    Threads may use one model side by side: each has its own run.
    """

    def __init__(self, own: Callable) -> None:
        self._own, self._runs = own, threading.local()

    def __call__(self, hidden: Tensor) -> Tensor:
        """Returns the logits; inside `run` one column, since the lines that follow want some."""
        if not getattr(self._runs, "wanted", False):
            return self._own(hidden)
        self._runs.states = hidden
        return hidden[..., :1]

    def run(self, forward: Callable, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Returns (what the head is given in a forward pass, what the pass returns)."""
        self._runs.wanted, self._runs.states = True, None
        try:
            output = forward(*args, **kwargs)
            return self._runs.states, output
        finally:
            self._runs.wanted, self._runs.states = False, None


@contextlib.contextmanager
def forward_of(module: Any, forward: Any) -> Iterator[Any]:
    """Replaces a module's forward inside the with block.

    Raises RuntimeError at the end if something else has replaced it since, and leaves that alone:
    it would have been lost, and it was called in place of this one. An error of the block goes
    before that.
    """
    own = module.__dict__.get("forward")
    module.forward = forward
    failed = True
    try:
        yield forward
        failed = False
    finally:
        if module.__dict__.get("forward") is forward:
            if own is None:
                del module.forward
            else:
                module.forward = own
        elif not failed:
            raise RuntimeError(
                f"fused_head: the forward of {type(module).__name__} was replaced inside the with"
                " block, so rlkern's was not called; with a trainer that does so use"
                " rlkern.integrations.patch"
            )


class HeadOf(NamedTuple):
    """Where a model's logits come from: softcap·tanh(logit_scale·head(hidden)/softcap)."""

    model: Any  # as it is called, with its adapters
    causal: Any  # the module whose forward ends in logits
    head: Any
    logit_scale: float
    softcap: float | None

    def hidden(self, *args: Any, **kwargs: Any) -> Hidden:
        """Returns the hidden states of a forward pass whose logits are not made."""
        with forward_of(self.head, Caught(self.head.forward)) as caught:
            states, output = caught.run(self.model, *args, **kwargs)
        return Hidden(states, aux_loss(self.causal, output))

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits of hidden states, as the model itself makes them."""
        return shaped(self.head(hidden), self.logit_scale, self.softcap)

    def parameters(self) -> dict[str, Any]:
        """Returns the head as rlkern.linear_token_logprob takes it, of this moment."""
        scaled = {"logit_scale": self.logit_scale, "softcap": self.softcap}
        return {**weights_of(self.head)._asdict(), **scaled}


def shaped(z: Tensor, scale: float, softcap: float | None) -> Tensor:
    z = z * scale if scale != 1 else z
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def aux_loss(causal: Any, output: Any) -> Tensor | None:
    """Returns what transformers adds to the loss for the router of a mixture, its coefficient
    included; None where the model's configuration, output_router_logits, does not ask for it."""
    loss = getattr(output, "aux_loss", None)
    if not isinstance(loss, Tensor):
        return None
    for holder in (causal, text_config(causal)):
        for name in _AUX_COEF:
            if getattr(holder, name, None) is not None:
                return float(getattr(holder, name)) * loss
    raise ValueError(
        f"fused_head: {type(causal).__name__} has an auxiliary loss, so it must name its "
        f"coefficient as {' or '.join(_AUX_COEF)}, and names none"
    )


def text_config(model: Any) -> Any:
    """Returns the configuration of a model's text part, which of most models is all of it."""
    return model.config.get_text_config(decoder=True)


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
    if hasattr(weight, "ds_id"):
        raise ValueError(
            "fused_head: the head must be whole, got one that DeepSpeed ZeRO-3 has split; use"
            " ZeRO-2 or FSDP2"
        )
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
