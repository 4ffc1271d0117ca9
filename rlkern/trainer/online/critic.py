# SPDX-License-Identifier: Apache-2.0
"""Critics: what estimates the value of the state before each token, as one more output of the
policy or as a model of its own.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rlkern
from rlkern.integrations.fused_head import find_head
from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.data import Rollout
from rlkern.trainer.scoring import hidden_states

_FILE = "critic.safetensors"


class Critic(ABC):
    """Estimates value[b, t] of the state before token[b, t]; the last layer is in float32 and
    starts at zero, so that the first estimate is 0 everywhere.

    `module` holds all weights of the critic and none of the policy.
    """

    module: nn.Module

    def __init__(self, *, share_prompts: bool) -> None:
        self._share_prompts = share_prompts

    @abstractmethod
    def value(self, policy: Policy, rollout: Rollout, hidden: Tensor) -> Tensor:
        """Returns the values (B, T) float32 with their graph.

        hidden (B, T, H) are the policy's own hidden states of the rollout; detached ones keep the
        gradient out of the policy.
        """

    @abstractmethod
    def begin(self, policy: Policy) -> None:
        """Take over what the critic starts from, once the policy is as it starts to be trained."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the weights that are trained, by name."""
        return dict(self.module.named_parameters())

    @torch.no_grad()
    def values(self, policy: Policy, rollout: Rollout, pieces: list[tuple[int, int]]) -> Tensor:
        """Returns the values (B, T) float32 without gradient, piece after piece of the prompts."""
        found = []
        for first, last in pieces:
            part = rollout.piece(first, last)
            hidden = hidden_states(policy, part, share_prompts=self._share_prompts)
            found.append(self.value(policy, part, hidden))
        return torch.cat([rollout.rollout_logprob[:0], *found])  # a process may have no rows

    def loss(
        self,
        policy: Policy,
        rollout: Rollout,
        hidden: Tensor,
        old_value: Tensor | None,
        target: Tensor,
        weight: Tensor,
        config: Config,
    ) -> rlkern.LossOutput:
        """Returns the loss of a piece's values against their targets, before value_coef.

        Tokens whose target is NaN do not count; weight (B, T) holds the counts of the whole batch.
        """
        value = self.value(policy, rollout, hidden)
        counted = rollout.mask & ~target.isnan()
        if not config.value_clip:
            return rlkern.value_loss(value, None, target, counted, kind="squared", weight=weight)
        return rlkern.value_loss(
            value, old_value, target, counted, clip=config.value_clip, weight=weight
        )

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Write the weights into a folder, which is made; `state` are those by name where they are
        spread over processes."""
        folder.mkdir(parents=True, exist_ok=True)
        state = state or self.module.state_dict()
        weights = {name: x.detach().contiguous() for name, x in state.items()}
        save_file(weights, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Take the weights that `save` wrote; raises one sentence where they are not there or of
        another critic."""
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

    def value(self, policy: Policy, rollout: Rollout, hidden: Tensor) -> Tensor:
        """Returns the values (B, T) of the policy's hidden states."""
        return self.module(hidden.float()).squeeze(-1)

    def begin(self, policy: Policy) -> None:
        """Leave the layer at zero."""


class Separate(Critic):
    """A model of its own, of the policy's architecture and with its weights at the start."""

    def __init__(self, policy: Policy, *, share_prompts: bool) -> None:
        super().__init__(share_prompts=share_prompts)
        self._trunk, self._last = _trunk_of(policy), _last_layer(policy)
        self.module = nn.ModuleDict({"trunk": self._trunk, "last": self._last})

    def begin(self, policy: Policy) -> None:
        """Copy the policy's weights, what adapters add to them included."""
        self._trunk.load_state_dict(_trunk_of(policy).state_dict())

    def value(self, policy: Policy, rollout: Rollout, hidden: Tensor) -> Tensor:
        """Returns the values (B, T) that the critic's own model gives the tokens."""
        share, trunk = self._share_prompts, self._trunk
        own = hidden_states(policy, rollout, share_prompts=share, decoder=trunk)
        return self._last(own.float()).squeeze(-1)


# By Config.critic.
CRITICS: dict[str, type[Head] | type[Separate]] = {"head": Head, "separate": Separate}


def _last_layer(policy: Policy) -> nn.Linear:
    """Returns a linear layer (H → 1) of zeros, in float32 whatever the policy is in."""
    width = policy.head.parameters()["weight"].shape[1]
    layer = nn.utils.skip_init(nn.Linear, width, 1, device=policy.device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _trunk_of(policy: Policy) -> nn.Module:
    """Returns a copy of the policy without its head, all of it trainable."""
    model = copy.deepcopy(policy.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    return find_head(model).decoder.requires_grad_(True)


def make_critic(config: Config, policy: Policy, resume_from: Path | None = None) -> Critic:
    """Returns the critic that the settings ask for, as it starts or as a checkpoint has it."""
    critic = CRITICS[config.critic](policy, share_prompts=config.share_prompts)
    if resume_from is not None:
        critic.load(resume_from / "critic")
    return critic
