# SPDX-License-Identifier: Apache-2.0
"""The losses of rows as modules, which data parallelism wraps: (rows, train_policy) -> Found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

import rlkern
from rlkern import LossOutput
from rlkern.algorithms.registry import algorithm
from rlkern.backends.eager.gates import PULLS
from rlkern.trainer.critic import Critic
from rlkern.trainer.models.policy import Policy, run_rows
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings


class Found(NamedTuple):
    """The losses of some rows, and how far they are from those of another path.

    Each is None if it does not train: the policy while it waits for its critic, or the critic if
    there is none. router is what a mixture of experts adds for its router, None without one.
    """

    policy: LossOutput | None
    critic: LossOutput | None = None
    differences: dict[str, float] = {}
    router: Tensor | None = None


class Losses(torch.nn.Module):
    """What the losses of a run hold: the policy, the models that are trained, and the settings."""

    def __init__(self, policy: Policy, settings: Settings, critic: Critic | None = None) -> None:
        super().__init__()
        self.policy, self.settings, self.critic = policy, settings, critic
        self.trained = torch.nn.ModuleList([policy.model])
        if critic is not None:
            self.trained.append(critic.module)

    def speaks(self, rows: Rows) -> Tensor | None:
        """Returns which prompts (Q,) have answers whose gradient may differ from 0; None if any
        may have."""
        return None


@dataclass(frozen=True)
class Objective:
    """What rlkern.policy_loss is asked for, whatever the rows.

    path is the setting loss.path; compare names a second path, whose difference is reported.
    """

    path: str
    algorithm: str = "reinforce"
    temperature: float = 1.0
    coefficients: Mapping[str, Any] = field(default_factory=dict)
    compare: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Objective:
        """Returns the objective of the algorithm of a run."""
        of_statistic = settings.declared.statistic_coef
        return cls(
            settings.loss.path,
            settings.algorithm,
            settings.rollout.temperature,
            {k: x for k, x in settings.coefficients.items() if k not in of_statistic},
            settings.loss.compare,
        )

    @property
    def silent_at_zero(self) -> bool:
        """Whether a token whose advantage is 0 has a gradient of exactly 0, if nothing of its own
        weighs on it: no gate that pulls towards ratio 1, no KL and no entropy."""
        declared = algorithm(self.algorithm)
        terms = [self.coefficients.get(name, 0.0) for name in ("kl_coef", "entropy_coef")]
        return declared.gate not in PULLS and not any(terms)

    @classmethod
    def likelihood(cls, settings: Settings, algorithm: str = "sft") -> Objective:
        """Returns the objective of given answers, whose advantage is 1."""
        return cls(settings.loss.path, algorithm)

    def arguments(self, rows: Rows) -> dict[str, Any]:
        """Returns what rlkern.policy_loss takes in addition to the scores."""
        reads_reference = self.coefficients.get("kl_coef", 0.0) != 0
        return {
            "token": rows.token,
            "advantage": rows.advantage,
            "mask": rows.mask,
            "old_logprob": rows.anchor_logprob,
            "ref_logprob": rows.ref_logprob if reads_reference else None,
            "correction": rows.correction,
            "penalty": rows.penalty,
            "weight": rows.weight,
            "entropy_weight": rows.entropy_weight,
            "nll_weight": rows.nll_weight,
            "keep": rows.keep,
            "temperature": self.temperature,
            "algorithm": self.algorithm,
            **self.coefficients,
        }


class PolicyLosses(Losses):
    """rlkern.policy_loss of rows, and the value loss of the critic if there is one."""

    def __init__(
        self,
        policy: Policy,
        settings: Settings,
        objective: Objective,
        critic: Critic | None = None,
    ) -> None:
        super().__init__(policy, settings, critic)
        self.objective = objective

    def speaks(self, rows: Rows) -> Tensor | None:
        """Returns which prompts (Q,) have answers with an advantage, a penalty or an imitation of
        their own: the gradient of all others is exactly 0."""
        routed = self.policy.passes.routed
        if self.critic is not None or routed or not self.objective.silent_at_zero:
            return None
        assert rows.advantage is not None
        own = rows.advantage if rows.advantage.ndim == 2 else rows.advantage[:, None]
        speaks = own != 0
        if rows.penalty is not None:
            speaks = speaks | (rows.penalty != 0)
        if rows.weight is not None:
            speaks = speaks & (rows.weight != 0)
        if rows.nll_weight is not None:
            speaks = speaks | (rows.nll_weight != 0)
        return (speaks & rows.mask).view(rows.prompts, -1).any(-1)

    def forward(self, rows: Rows, train_policy: bool = True) -> Found:
        """Returns the losses of the rows."""
        policy, share = self.policy, self.settings.memory.share_prompts
        hidden, router = run_rows(policy, rows, share_prompts=share)
        found, differences = None, {}
        if train_policy:
            arguments = self.objective.arguments(rows)
            if self.objective.compare:
                differences = compare(policy, hidden, arguments, self.objective)
            found = policy_loss(policy, hidden, arguments, self.objective.path)
        if self.critic is None:
            return Found(found, None, differences, router)
        # While the critic warms up the policy must stay as it is, what they share included.
        states = hidden if train_policy else hidden.detach()
        value = self.critic.loss(policy, rows, states, self.settings.critic.clip)
        return Found(found, value, differences, router if train_policy else None)


def policy_loss(
    policy: Policy, hidden: Tensor, arguments: Mapping[str, Any], path: str
) -> LossOutput:
    """Returns the loss of hidden states by one of the paths that loss.path names."""
    with policy.precision():
        if path == "linear":
            head = policy.head.parameters()
            return rlkern.linear_policy_loss(hidden, head.pop("weight"), **arguments, **head)
        logits = policy.head.logits(hidden)
    if path == "fused":
        return rlkern.policy_loss(logits, **arguments, inplace=True)
    with rlkern.use_backend("eager"):
        return rlkern.policy_loss(logits, **arguments)


def compare(
    policy: Policy, hidden: Tensor, arguments: Mapping[str, Any], objective: Objective
) -> dict[str, float]:
    """Returns how far the loss is from the one it is compared with, on the same hidden states.

    Copies leave the training untouched. The gradient is that of the hidden states; the difference
    of its norms is relative to the other one.
    """
    results = []
    for path in (objective.path, str(objective.compare)):
        copy = hidden.detach().clone().requires_grad_()
        loss = policy_loss(policy, copy, arguments, path).loss
        (gradient,) = torch.autograd.grad(loss, copy)
        results.append((loss.item(), gradient.float().norm().item()))
    (own, norm), (other, other_norm) = results
    return {
        "compare/loss_difference": abs(own - other),
        "compare/grad_norm_difference": abs(norm - other_norm) / max(other_norm, 1e-30),
    }
