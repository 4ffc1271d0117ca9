# SPDX-License-Identifier: Apache-2.0
"""Stable-Baselines3 2.9: PPO, A2C, the rollout buffer, DQN."""

import torch
from torch.nn.functional import mse_loss, smooth_l1_loss

from conventions.eager import ratio


def ppo(x, advantage):
    r = ratio(x)
    return -torch.min(advantage * r, advantage * r.clamp(1 - 0.2, 1 + 0.2)).mean()


def near_old(x):
    return x.old_value + (x.value - x.old_value).clamp(-0.2, 0.2)


def normalized(advantage):
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def whole_ppo(x):
    loss = ppo(x, normalized(x.token_advantage)) + 0.01 * -x.entropy.mean()
    return loss + 0.5 * mse_loss(x.target, x.value)


def a2c(x):
    loss = -(x.token_advantage * x.logprob).mean() + 0.01 * -x.entropy.mean()
    return loss + 0.5 * mse_loss(x.target, x.value)


def gae(x, decay):
    """Returns the advantages of one environment, whose episodes end after steps 5 and 9."""
    reward, value = x.token_reward[0].clone(), x.value[0].detach()
    reward[9] += 0.99 * x.final_value[0, 9]  # cut off by a time limit
    goes_on = torch.ones(16, dtype=torch.float64)
    goes_on[[5, 9]] = 0.0
    running, found = 0.0, []
    for t in reversed(range(16)):
        after = value[t + 1] if t < 15 else x.last_value
        delta = reward[t] + 0.99 * after * goes_on[t] - value[t]
        running = delta + 0.99 * decay * goes_on[t] * running
        found.append(running)
    return torch.stack(found[::-1])[None]


def dqn(x, discount):
    with torch.no_grad():
        target = x.reward + (1 - x.done.double()) * discount * x.next_q.max(1).values
    return smooth_l1_loss(x.q.gather(1, x.action[:, None])[:, 0], target)


ROWS = {
    "PPO: clip_range=0.2": lambda x: ppo(x, x.token_advantage),
    "PPO: clip_range_vf=None": lambda x: mse_loss(x.target, x.value),
    "PPO: clip_range_vf=0.2": lambda x: mse_loss(x.target, near_old(x)),
    "PPO: normalize_advantage=True": lambda x: normalized(x.token_advantage),
    "PPO: ent_coef=0.01, vf_coef=0.5": whole_ppo,
    "train/clip_fraction": lambda x: ((ratio(x).detach() - 1).abs() > 0.2).double().mean(),
    "train/approx_kl": lambda x: (ratio(x) - 1 - (x.logprob - x.old)).detach().mean(),
    "A2C: ent_coef=0.01, vf_coef=0.5": a2c,
    "gamma=0.99, gae_lambda=0.95": lambda x: gae(x, 0.95),
    "the same, the returns": lambda x: gae(x, 0.95) + x.value[:1].detach(),
    "gae_lambda=1.0, the returns": lambda x: gae(x, 1.0) + x.value[:1].detach(),
    "gae_lambda=0.0, the returns": lambda x: gae(x, 0.0) + x.value[:1].detach(),
    "DQN: gamma=0.99": lambda x: dqn(x, 0.99),
    "DQN: n_steps=3": lambda x: dqn(x, 0.99**3),
}
