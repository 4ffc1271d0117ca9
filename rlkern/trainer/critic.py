# SPDX-License-Identifier: Apache-2.0
"""Critics: what estimates the value of the state before each token, as one more output of the
policy or as a model of its own.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rlkern
from rlkern.integrations.head import HeadOf
from rlkern.runs.errors import UserError
from rlkern.trainer.models import lora
from rlkern.trainer.models.policy import Passes, Policy, hidden_states
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings

_FILE = "critic.safetensors"
FOLDER = "critic"  # in a checkpoint


class Critic(ABC):
    """Estimates value[b, t] of the state before token[b, t]; the last layer is in float32 and
    starts at zero, so that the first estimate is 0 everywhere.

    `module` holds all weights of the critic and none of the policy.
    """

    module: nn.Module

    def __init__(self, *, share_prompts: bool) -> None:
        self._share_prompts = share_prompts

    @abstractmethod
    def value(self, policy: Policy, rows: Rows, hidden: Tensor) -> Tensor:
        """Returns the values (B, T) float32 with their graph.

        hidden (B, T, H) are the policy's own hidden states of the rows; detached ones keep the
        gradient out of the policy.
        """

    @abstractmethod
    def begin(self, policy: Policy) -> None:
        """Takes over what the critic starts from, once the policy is as it starts to be trained."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the weights that are trained, by name."""
        return dict(self.module.named_parameters())

    def values(self, policy: Policy, rows: Rows) -> Tensor:
        """Returns the values (B, T) float32 of rows."""
        hidden = hidden_states(policy, rows, share_prompts=self._share_prompts)
        return self.value(policy, rows, hidden)

    def loss(self, policy: Policy, rows: Rows, hidden: Tensor, clip: float) -> rlkern.LossOutput:
        """Returns the loss of the values of rows against their targets, before critic.coef.

        Tokens whose target is NaN do not count; value_weight holds the counts of the whole batch.
        """
        target, weight = rows.value_target, rows.value_weight
        assert target is not None and weight is not None  # the learner of a critic makes them
        value = self.value(policy, rows, hidden)
        counted = rows.mask & ~target.isnan()
        if not clip:
            return rlkern.value_loss(value, None, target, counted, kind="squared", weight=weight)
        return rlkern.value_loss(value, rows.value, target, counted, clip=clip, weight=weight)

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes the weights into a folder, which is made; `state` are those by name if they are
        spread over processes."""
        folder.mkdir(parents=True, exist_ok=True)
        state = state or self.module.state_dict()
        weights = {name: x.detach().contiguous() for name, x in state.items()}
        save_file(weights, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Takes the weights that `save` wrote; Raises UserError if they are not there or another
        critic's."""
        try:
            self.module.load_state_dict(load_file(folder / _FILE))
        except Exception as error:
            # safetensors raises its own class, not a subclass of OSError or ValueError.
            first = str(error).strip().split("\n")[0]
            raise UserError(f"{folder / _FILE} cannot be read as this critic: {first}") from error


class Head(Critic):
    """One more output of the policy: a linear layer on its hidden states, which it then shapes."""

    def __init__(self, policy: Policy, *, share_prompts: bool) -> None:
        super().__init__(share_prompts=share_prompts)
        self.module = _last_layer(policy)

    def value(self, policy: Policy, rows: Rows, hidden: Tensor) -> Tensor:
        """Returns the values (B, T) of the policy's hidden states."""
        return self.module(hidden.float()).squeeze(-1)

    def begin(self, policy: Policy) -> None:
        """Leaves the layer at zero."""


class Separate(Critic):
    """A model of its own, of the policy's architecture and with its weights at the start."""

    def __init__(self, policy: Policy, *, share_prompts: bool) -> None:
        super().__init__(share_prompts=share_prompts)
        trunk, self._last = _trunk_of(policy), _last_layer(policy)
        self._passes = Passes(trunk)
        self._passes.choose(policy.passes.way)
        self.module = nn.ModuleDict({"trunk": trunk.model, "last": self._last})

    def begin(self, policy: Policy) -> None:
        """Copies the policy's weights, with what adapters add to them."""
        self._passes.head.model.load_state_dict(_trunk_of(policy).model.state_dict())

    def value(self, policy: Policy, rows: Rows, hidden: Tensor) -> Tensor:
        """Returns the values (B, T) that the critic's own model gives the tokens."""
        share, passes = self._share_prompts, self._passes
        own = hidden_states(policy, rows, share_prompts=share, passes=passes)
        return self._last(own.float()).squeeze(-1)


# By the setting critic.kind.
CRITICS: dict[str, type[Head] | type[Separate]] = {"head": Head, "separate": Separate}


def _last_layer(policy: Policy) -> nn.Linear:
    """Returns a linear layer (H → 1) of zeros, in float32 whatever the policy is in."""
    width = policy.head.parameters()["weight"].shape[1]
    layer = nn.utils.skip_init(nn.Linear, width, 1, device=policy.device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _trunk_of(policy: Policy) -> HeadOf:
    """Returns a copy of the policy, all of it trainable, with nothing in the place of its head."""
    model = copy.deepcopy(policy.model)
    if lora.is_adapted(model):
        model = lora.merged(model)
    head, nothing = model.get_output_embeddings(), nn.Identity()
    places = [(x, name) for x in model.modules() for name, y in x.named_children() if y is head]
    for module, name in places:
        setattr(module, name, nothing)
    return HeadOf(model, model.requires_grad_(True), nothing, 1.0, None)


def make_critic(settings: Settings, policy: Policy, saved: Path | None) -> Critic:
    """Returns the critic that the settings ask for, as it starts or as a checkpoint has it."""
    kind = CRITICS[settings.critic.kind]
    critic = kind(policy, share_prompts=settings.memory.share_prompts)
    if saved is None:
        critic.begin(policy)
    else:
        critic.load(saved / FOLDER)
    return critic
