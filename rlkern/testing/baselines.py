# SPDX-License-Identifier: Apache-2.0
"""What the fused operations are compared with: the reference's formulas behind autograd."""

import torch
from torch import Tensor

from rlkern.backends.eager.token_objective import Objective, Rows, token_loss

GRPO = Objective("ppo_clip", "token", "k3", (0.2, 0.2, 0.0, 0.0), 0.04, 0.0)
GSPO = Objective("ppo_clip", "sequence", "k3", (3e-4, 4e-4, 0.0, 0.0), 0.04, 0.0)


def eager_logprob(logits: Tensor, token: Tensor) -> Tensor:
    """Returns log-probabilities as trainers write them: log_softmax in float32, gather."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1)


def eager_loss(logits: Tensor, token: Tensor, rows: Rows, objective: Objective) -> Tensor:
    """Returns a loss as trainers write it: log-probabilities, then terms of tokens."""
    logprob = eager_logprob(logits, token)
    return token_loss(logprob, logprob, rows, objective).sum()


def eager_grpo_loss(logits: Tensor, token: Tensor, *rows: Tensor) -> Tensor:
    """Returns the GRPO loss; rows are advantage, weight, old and reference log-probabilities."""
    return eager_loss(logits, token, Rows(*rows), GRPO)


def eager_gspo_loss(logits: Tensor, token: Tensor, *rows: Tensor) -> Tensor:
    """Returns the GSPO loss of sequences that are the rows of a (B, T) batch."""
    return eager_loss(logits, token, Rows(*rows), GSPO)


def eager_kept_set_loss(logits: Tensor, token: Tensor, *rest: Tensor) -> Tensor:
    """Returns the GRPO loss among the ids that the sampler kept, the last argument."""
    *rows, keep = rest
    allowed = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, keep, True)
    allowed = allowed.scatter_(-1, token.unsqueeze(-1), True)
    return eager_grpo_loss(logits.masked_fill(~allowed, -torch.inf), token, *rows)


def eager_softcap_loss(logits: Tensor, token: Tensor, *rest) -> Tensor:
    """Returns the GRPO loss of softcap·tanh(logits / softcap), softcap being the last argument."""
    *rows, softcap = rest
    return eager_grpo_loss(softcap * torch.tanh(logits.float() / softcap), token, *rows)


def eager_logprob_and_entropy(logits: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log-probability and entropy of each row, forward only."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def python_loop_gae(
    reward: Tensor, value: Tensor, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Returns GAE by the loop over time that trainers use."""
    advantage = torch.zeros_like(reward)
    carry = torch.zeros_like(reward[:, 0])
    following = carry
    for t in range(reward.shape[1] - 1, -1, -1):
        delta = reward[:, t] + discount * following - value[:, t]
        carry = delta + discount * gae_lambda * carry
        advantage[:, t], following = carry, value[:, t]
    return advantage, advantage + value


def eager_td_loss(
    q: Tensor, action: Tensor, reward: Tensor, done: Tensor, next_q: Tensor
) -> Tensor:
    """Returns the loss of DQN as CleanRL and Stable-Baselines3 write it, Huber's penalty."""
    with torch.no_grad():
        target = reward + 0.99 * ~done * next_q.amax(-1)
    value = q.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    return torch.nn.functional.smooth_l1_loss(value, target)
