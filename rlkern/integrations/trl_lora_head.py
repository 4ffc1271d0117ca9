# SPDX-License-Identifier: Apache-2.0
"""LoRA on the head inside TRL, an opt-in of its own on top of `patch("trl")`.

TRL multiplies hidden states by the head's weight, so an adapter there would never be trained, and
each trainer's constructor refuses one. rlkern.linear_token_logprob takes the adapter as it is, so
here the constructors admit it, and each forward says which adapter counts: none while PEFT has it
disabled, which makes the reference.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from rlkern.integrations._target import Target, Trainer
from rlkern.integrations.head import weights_of
from rlkern.integrations.trl import TRAINER as TRL
from rlkern.integrations.trl import adapted

_TRAINERS = ("dpo", "grpo", "kto", "rloo", "sft")


def _admitting(original: Any, count: Callable[[], None]) -> type:
    """Returns a class without instances, so that a constructor finds no adapter on the head."""

    class Admitting(type):
        def __instancecheck__(cls, layer: object) -> bool:
            if isinstance(layer, original):
                weights_of(layer)  # raises for an adapter that is not plain LoRA
                count()
            return False

    return Admitting(original.__name__, (), {})


def _with_adapter(original: Callable[..., None], count: Callable[[], None]) -> Callable[..., None]:
    """Returns TRL's add_fused_lm_head, whose models say which adapter their head has."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    def add_fused_lm_head(
        model: Any,
        temperature: float = 1.0,
        cast_lm_head_to_fp32: bool = False,
        outputs: tuple[str, ...] = ("log_probs",),
    ) -> None:
        if cast_lm_head_to_fp32 and isinstance(model.get_output_embeddings(), BaseTunerLayer):
            raise ValueError(
                "rlkern in TRL: cast_lm_head_to_fp32 must be False with LoRA on the head, got True"
            )
        original(model, temperature, cast_lm_head_to_fp32, outputs)
        fused = model.forward

        @functools.wraps(type(model).forward)  # generate reads the parameters, as TRL's remarks
        def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
            head = self.get_output_embeddings() if fused_lm_head else None
            if not isinstance(head, BaseTunerLayer):
                return fused(*args, fused_lm_head=fused_lm_head, **kwargs)
            count()
            with adapted(weights_of(head)):
                return fused(*args, fused_lm_head=True, **kwargs)

        model.forward = types.MethodType(forward, model)

    return add_fused_lm_head


def _targets(trainer: str) -> tuple[Target, Target]:
    module = f"trl.trainer.{trainer}_trainer"
    signature = "(model, temperature=1.0, cast_lm_head_to_fp32=False, outputs=('log_probs',))"
    return (
        Target(module, "add_fused_lm_head", signature, _with_adapter),
        Target(module, "BaseTunerLayer", "()", _admitting),
    )


TRAINER = Trainer(
    "trl-lora-head",
    TRL.versions,
    tuple(target for trainer in _TRAINERS for target in _targets(trainer)),
    package="trl",
    over=TRL.name,
    needs=("peft",),
)
