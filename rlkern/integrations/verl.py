# SPDX-License-Identifier: Apache-2.0
"""What rlkern serves inside verl: the fused head, generalized advantage estimation.

The head is used where verl's configuration asks for one (`model.use_fused_kernels`), whichever of
its backends is named. Importing verl loads `rlkern.integrations.verl_plugin`, so that installing
rlkern is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

import rlkern
from rlkern.integrations._patch import Target, Trainer


def _whole(weight: Tensor) -> Tensor:
    """Returns a head that FSDP2 has spread over ranks as one tensor; gradients go back."""
    gather = getattr(weight, "full_tensor", None)
    return weight if gather is None else gather()


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
    with torch.no_grad():
        found = rlkern.gae(
            token_level_rewards,
            values,
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
)
