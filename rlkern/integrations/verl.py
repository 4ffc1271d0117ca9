# SPDX-License-Identifier: Apache-2.0
"""What rlkern serves inside verl: the fused head, generalized advantage estimation, and by name
policy losses and advantage estimators.

The head is used where verl's configuration asks for one (`model.use_fused_kernels`), whichever of
its backends is named. Importing verl loads `rlkern.integrations.verl_plugin`, so that installing
rlkern is enough.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

import rlkern
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.integrations import verl_advantages, verl_losses
from rlkern.integrations._target import Target, Trainer, checked_version


def _whole(weight: Tensor) -> Tensor:
    """Returns a head that FSDP2 has spread over ranks as one tensor.

    The gradient of the spread head is the mean of the ranks' gradients, as FSDP2 makes it of the
    layers that it gathers itself: each rank has seen other rows.
    """
    # Here, because it takes seconds, and `rlkern doctor` only asks which versions are served.
    from torch.distributed.tensor import DTensor, Partial

    if not isinstance(weight, DTensor):
        return weight
    mesh = weight.device_mesh
    whole = weight.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if whole.requires_grad:
        whole.register_hook(lambda grad: grad / mesh.size())  # gloo has no mean of its own
    return whole


def token_scores(
    hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Returns (log π, entropy) of input_ids (…), scored by hidden_states (…, H).

    As verl's FusedLinearForPPO: log π in float32, the entropy in the dtype of the hidden states.
    A head that is an FSDP unit of its own, which verl's function fails on, is gathered.

    >>> hidden, weight = torch.zeros(1, 2, 4), torch.ones(2, 4)
    >>> token_scores(hidden, weight, torch.tensor([[0, 1]]))[0]
    tensor([[-0.6931, -0.6931]])
    """
    scored = rlkern.linear_token_logprob(
        hidden_states, _whole(vocab_weights), input_ids, temperature=temperature
    )
    return scored.logprob, scored.entropy.to(hidden_states.dtype)


def _fused_linear_forward(original: Any, count: Callable[[], None]) -> Any:
    def forward(self, hidden_states, vocab_weights, input_ids, temperature=1.0):
        count()
        return token_scores(hidden_states, vocab_weights, input_ids, temperature)

    return forward


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns (log π, entropy) of flat labels (N,), as verl's Triton function does.

    dist_process_group is the ranks that share the vocabulary, each with its slice of the weight.

    >>> cross_entropy(torch.zeros(2, 4), torch.ones(2, 4), torch.tensor([0, 1]))[0]
    tensor([-0.6931, -0.6931])
    """
    if reduction != "none":
        raise ValueError(f"rlkern in verl: reduction must be 'none', got {reduction!r}")
    scored = rlkern.linear_token_logprob(
        hidden.reshape(-1, hidden.shape[-1]),
        _whole(weight),
        labels.reshape(-1),
        temperature=temperature,
        group=dist_process_group,
    )
    return scored.logprob, scored.entropy


def _linear_cross_entropy(original: Any, count: Callable[[], None]) -> Any:
    def linear_cross_entropy(*args, **kwargs):
        count()
        return cross_entropy(*args, **kwargs)

    return linear_cross_entropy


def advantages(
    token_level_rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Returns (whitened advantages, returns), each (B, T): one scan in place of verl's loop.

    Both are 0 where response_mask is, which nothing of verl reads.

    >>> one = torch.ones(1, 2)
    >>> advantages(one, 0 * one, one, 1.0, 1.0)[1]
    tensor([[2., 1.]])
    """
    wide = functools.reduce(
        torch.promote_types, (token_level_rewards.dtype, values.dtype), torch.float32
    )
    with torch.no_grad():
        found = rlkern.gae(
            token_level_rewards.to(wide),
            values.to(wide),
            response_mask.bool(),
            discount=float(gamma),
            gae_lambda=float(lam),
            whiten=True,
        )
    return found.advantage, found.target


def _gae(original: Any, count: Callable[[], None]) -> Any:
    def compute_gae_advantage_return(token_level_rewards, values, response_mask, gamma, lam):
        count()
        return advantages(token_level_rewards, values, response_mask, gamma, lam)

    return compute_gae_advantage_return


@cache
def losses() -> dict[str, Callable[..., Any]]:
    """Returns the policy losses that verl can be given, by the name for policy_loss.loss_mode.

    >>> "rlkern_cfpo" in losses(), "rlkern_m2po" in losses()
    (True, False)
    """
    known = rlkern.algorithms().values()
    served = [each for each in known if verl_losses.reason(each) is None]
    return {verl_losses.PREFIX + each.name: verl_losses.policy_loss(each) for each in served}


@cache
def estimators() -> dict[str, Callable[..., Any]]:
    """Returns the advantages that verl can be given, by the name for algorithm.adv_estimator.

    >>> "rlkern_max_rl" in estimators()
    True
    """
    kinds = verl_advantages.KINDS
    return {verl_losses.PREFIX + kind: verl_advantages.estimator(kind) for kind in kinds}


def unserved() -> dict[str, str]:
    """Returns why verl cannot be given the others of rlkern's algorithms, by their names.

    >>> sorted(unserved())
    ['a_star_po', 'clip_cov', 'dupo', 'high_entropy', 'kl_cov', 'm2po', 'on_policy_distillation', 'p3o']
    """  # noqa: E501
    found = {name: verl_losses.reason(each) for name, each in rlkern.algorithms().items()}
    return {name: why for name, why in found.items() if why is not None}


def register() -> None:
    """Registers rlkern's policy losses and advantage estimators with verl, in this process.

    The plugin does it in each of verl's processes; where plugins are off, call it in each. Every
    name begins with rlkern_, and verl's own are left as they are.

    Raises PatchError if verl is not installed, or of a version that was not looked at.
    """
    checked_version("register", TRAINER)
    from verl.trainer.ppo import core_algos

    add_loss, add_estimator = core_algos.register_policy_loss, core_algos.register_adv_est
    for name, loss in losses().items():
        add_loss(name)(loss)
    for name, estimator in estimators().items():
        add_estimator(name)(estimator)


def configuration(name: str) -> list[str]:
    """Returns the options that make a run of verl one of an algorithm: its advantage, loss,
    aggregation and coefficients; not how it samples, nor what it adds to the reward.

    Raises ValueError for an algorithm that verl cannot be given.

    >>> print("\\n".join(configuration("gspo")))
    algorithm.adv_estimator=rlkern_normalized
    actor_rollout_ref.actor.policy_loss.loss_mode=rlkern_gspo
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean
    actor_rollout_ref.actor.clip_ratio_low=0.0003
    actor_rollout_ref.actor.clip_ratio_high=0.0004
    """
    declared = find_algorithm(name)
    advantage = verl_advantages.VERLS.get(declared.advantage)
    lines = [f"algorithm.adv_estimator={advantage or verl_losses.PREFIX + declared.advantage}"]
    actor = verl_losses.settings(declared)
    return lines + [f"actor_rollout_ref.actor.{key}={value}" for key, value in actor.items()]


def unplugged() -> str | None:
    """Returns why `import verl` leaves rlkern out, or None if it brings rlkern in."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and "rlkern" not in [name.strip() for name in policy.split(",")]:
        return f"VERL_USE_EXTERNAL_PLUGINS={policy}"
    found = list(entry_points(group="verl.plugins", name="rlkern"))
    if not found:
        return "the plugin rlkern of verl.plugins must be installed, as pip install does"
    try:
        found[0].load()  # what it raises verl swallows
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return getattr(sys.modules[found[0].module], "failure", None)


TRAINER = Trainer(
    "verl",
    ">=0.9,<0.10",
    (
        Target(
            "verl.utils.experimental.torch_functional",
            "FusedLinearForPPO.forward",
            "(self, hidden_states, vocab_weights, input_ids, temperature=1.0)",
            _fused_linear_forward,
        ),
        Target(
            "verl.utils.kernel.linear_cross_entropy",
            "linear_cross_entropy",
            "(ctx, hidden, weight, labels, temperature=1.0, reduction='none',"
            " dist_process_group=None)",
            _linear_cross_entropy,
            called="__self__.forward",
        ),
        Target(
            "verl.trainer.ppo.core_algos",
            "compute_gae_advantage_return",
            "(token_level_rewards, values, response_mask, gamma, lam)",
            _gae,
        ),
    ),
    unplugged=unplugged,
)
