# SPDX-License-Identifier: Apache-2.0
"""Where a language model of transformers makes its logits, found by asking the model itself.

Its forward runs as it is, with its head asked to hand over the hidden states in place of making
logits: mixtures of experts, models in image-text wrappers, hybrids and state-space models need no
case of their own.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkern.integrations.head_weights import weights_of

_AUX_COEF = ("router_aux_loss_coef", "aux_loss_coef")


class Hidden(NamedTuple):
    """What a model's forward gives its head: (B, T, H), and the loss that it adds for its router,
    None without one."""

    states: Tensor
    aux_loss: Tensor | None


class Caught:
    """Stands for the forward of a head: itself, but inside `run` it keeps what it is given."""

    def __init__(self, own: Callable) -> None:
        self._own, self._wanted = own, False
        self.states: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Returns the logits; inside `run` one column, since the lines that follow want some."""
        if not self._wanted:
            return self._own(hidden)
        self.states = hidden
        return hidden[..., :1]

    def run(self, forward: Callable, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Returns (what the head is given in a forward pass, what the pass returns)."""
        self._wanted, self.states = True, None
        try:
            output = forward(*args, **kwargs)
        finally:
            self._wanted = False
        return self.states, output


@contextlib.contextmanager
def forward_of(module: Any, forward: Any) -> Iterator[Any]:
    """Replaces a module's forward inside the with block."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield forward
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


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
