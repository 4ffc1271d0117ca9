# SPDX-License-Identifier: Apache-2.0
"""Makes a causal language model of transformers score given tokens without storing its logits."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlkern.ops._linear_arguments import Lora
from rlkern.ops.linear_token_logprob import linear_token_logprob
from rlkern.ops.token_logprob import TokenLogprob


class HeadOf(NamedTuple):
    """Where a model's logits come from: softcap·tanh(logit_scale·head(hidden)/softcap)."""

    causal: nn.Module  # the module whose forward ends in logits
    decoder: nn.Module  # gives the hidden states
    head: nn.Module
    logit_scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits of hidden states, as the model itself makes them."""
        z = self.head(hidden) * self.logit_scale if self.logit_scale != 1 else self.head(hidden)
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def parameters(self) -> dict[str, Any]:
        """Returns the head as rlkern.linear_token_logprob takes it, of this moment."""
        base, lora = _without_adapter(self.head)
        scaled = {"logit_scale": self.logit_scale, "softcap": self.softcap}
        return {"weight": base.weight, "bias": getattr(base, "bias", None), "lora": lora, **scaled}


def _without_adapter(head: Any) -> tuple[Any, Lora | None]:
    """Returns (the linear layer, its low-rank addition) of a head that PEFT may have wrapped."""
    if not hasattr(head, "base_layer"):
        return head, None
    active = [] if head.disable_adapters or head.merged else list(head.active_adapters)
    active = [name for name in active if name in head.lora_A]
    if not active:
        return head.base_layer, None
    if len(active) > 1:
        raise ValueError(f"fused_head: the head must have one active adapter, got {active}")
    (name,) = active
    if getattr(head, "use_dora", {}).get(name):
        raise ValueError(f"fused_head: the head's adapter {name!r} must be plain LoRA, got DoRA")
    dropout = head.lora_dropout[name]
    if head.training and getattr(dropout, "p", 0) > 0:
        raise ValueError(
            f"fused_head: the head's LoRA must have no dropout in training, got {dropout.p}"
        )
    a, b = head.lora_A[name].weight, head.lora_B[name].weight
    return head.base_layer, Lora(a, b, float(head.scaling[name]))


def _causal(model: Any) -> Any:
    """Returns the module that owns the head, inside whatever wraps the model."""
    while True:
        inner = next(
            (getattr(model, n) for n in ("module", "_orig_mod") if hasattr(model, n)), None
        )
        if inner is None:
            break
        model = inner
    if hasattr(model, "get_base_model"):  # PEFT
        model = model.get_base_model()
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise TypeError(
            "fused_head: model must be a causal language model of transformers with a head, "
            f"got {type(model).__name__}"
        )
    return model


def _scales(config: Any) -> Iterator[tuple[float, float | None]]:
    """Yields the (logit_scale, softcap) that configurations of models name, likeliest first."""
    softcap = getattr(config, "final_logit_softcapping", None)
    scales = [1.0]
    if getattr(config, "logit_scale", None):
        scales.append(float(config.logit_scale))
    for name in ("logits_scaling", "logits_divider"):
        if getattr(config, name, None):
            scales.append(1.0 / float(getattr(config, name)))
    if getattr(config, "lm_head_multiplier", None):
        scales.append(float(config.lm_head_multiplier))
    for scale in reversed(scales):
        yield scale, softcap
        if softcap is not None:
            yield scale, None


@contextlib.contextmanager
def _forward_of(module: nn.Module, forward: Any) -> Iterator[None]:
    """Replaces a module's forward inside the with block."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@torch.no_grad()
def _probe(causal: Any, decoder: nn.Module, head: Any) -> tuple[Tensor, Tensor]:
    """Returns (logits the model makes of random hidden states, what the head alone makes)."""
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    base, _ = _without_adapter(head)
    weight = base.weight
    states = torch.randn(1, 2, weight.shape[1], generator=torch.Generator().manual_seed(0))
    states = (3 * states).to(weight.device, weight.dtype)

    def answer(*args: Any, **kwargs: Any):
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)

    token = torch.zeros(1, 2, dtype=torch.int64, device=weight.device)
    with _forward_of(decoder, answer):
        logits = causal(input_ids=token, use_cache=False).logits
    return logits.double(), head(states).double()


def find_head(model: nn.Module) -> HeadOf:
    """Returns where a model's logits come from; raises where that cannot be made sure of.

    Found by its output embeddings, not by a list of names: random hidden states are sent through
    the model's own last lines, and must come out as the head, a scale and a softcap make them.
    """
    causal = _causal(model)
    head, decoder = causal.get_output_embeddings(), causal.base_model
    if decoder is causal:
        raise TypeError(
            f"fused_head: {type(causal).__name__} must keep its decoder apart from its head"
        )
    made, bare = _probe(causal, decoder, head)
    config = causal.config.get_text_config() if hasattr(causal.config, "get_text_config") else None
    for scale, softcap in _scales(config or causal.config):
        z = bare * scale
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        if torch.allclose(made, z, rtol=0.02, atol=0.02 * float(z.abs().mean())):
            return HeadOf(causal, decoder, head, scale, softcap)
    raise ValueError(
        f"fused_head: the logits of {type(causal).__name__} must be those of its head, scaled and "
        "softcapped as its configuration says, got others"
    )


@contextlib.contextmanager
def fused_head(model: nn.Module) -> Iterator[nn.Module]:
    """Makes a model score given tokens inside the with block; its logits are never stored.

        with rlkern.fused_head(model):
            out = model(input_ids=..., attention_mask=..., token=token, mask=mask)
        out.logprob, out.entropy                                     # rlkern.TokenLogprob, (B, T)

    token[b, t] is scored by the hidden state at [b, t]: nothing is shifted. A token of fewer
    columns than the input is the answer that the input ends in, and is scored by as many hidden
    states, each one before its own. mask, temperature, keep and wave are those of
    rlkern.linear_token_logprob. Without token the model is as it was.

    The head may be tied to the embeddings, in another dtype than the hidden states, or carry a LoRA
    adapter of PEFT, which is used without being merged. Gradients reach all of it. Works under
    gradient checkpointing, DDP, torch.compile (compile inside the with block) and FSDP2 as long as
    the head is gathered with the root module; a head that is spread over ranks is refused.

    Arguments
        model  a causal language model of transformers, also wrapped by PEFT, DDP or torch.compile
    Raises
        TypeError, ValueError  for a model without a head, or whose logits are more than a head's,
                               a scale and a softcap (its configuration's)

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4}
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=1))
    >>> _ = model.lm_head.weight.data.zero_()
    >>> with fused_head(model), torch.no_grad():
    ...     out = model(input_ids=torch.tensor([[1, 2]]), token=torch.tensor([[2, 3]]))
    >>> out.logprob.exp()
    tensor([[0.1250, 0.1250]])
    """
    found = find_head(model)
    original = found.causal.forward

    def forward(
        *args: Any,
        token: Tensor | None = None,
        mask: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        keep: Tensor | None = None,
        wave: int | None = None,
        **kwargs: Any,
    ) -> TokenLogprob:
        if token is None:
            return original(*args, **kwargs)
        hidden = found.decoder(*args, **kwargs).last_hidden_state
        T = token.shape[1]
        if T < hidden.shape[1]:
            hidden = hidden[:, -T - 1 : -1]
        head = found.parameters()
        return linear_token_logprob(
            hidden, head.pop("weight"), token, mask=mask, temperature=temperature, keep=keep,
            wave=wave, **head,
        )  # fmt: skip

    with _forward_of(found.causal, forward):
        yield model
