# SPDX-License-Identifier: Apache-2.0
"""A2C: the policy gradient with advantages from a value function, on policy and without a clip.

    ℓ_t = −A_t·log π(o_t) − entropy_coef·H_t        A_t = δ_t + γλ·A_{t+1},  δ_t the TD error

Paper: arXiv 1602.01783, §4 (A3C; A2C is its synchronous form). A_t is the paper's n-step advantage
at λ = 1. The loss is the mean over tokens; the paper sums over the steps of a worker.

>>> import torch, rlkern
>>> logprob, mask = torch.log(torch.tensor([[0.5, 0.5]])), torch.tensor([[True, True]])
>>> reward, value = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
>>> advantage = rlkern.gae(reward, value, mask, gae_lambda=1.0).advantage
>>> advantage.tolist()
[[0.5, 0.75]]
>>> out = rlkern.token_objective(logprob, advantage, mask, algorithm="a2c")
>>> round(out.loss.item(), 4)
0.4332

Two tokens of probability 1/2: the mean of 0.5·log 2 and 0.75·log 2 is 0.4332.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="a2c",
    paper="arXiv 1602.01783, §4",
    gate="reinforce",
    advantage="gae",
    aggregation="token_mean",
    kl_estimator="k2",
    defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"advantage.discount": 1.0, "advantage.gae_lambda": 1.0, "critic.coef": 1.0},
    sources={
        "kl_coef": "the paper has none",
        "entropy_coef": "Stable-Baselines3; the paper uses 0.01 on Atari",
        "advantage.discount": "1 for language models, whose reward comes last; the paper has 0.99",
        "advantage.gae_lambda": "Stable-Baselines3, as the paper's returns",
        "critic.coef": "Stable-Baselines3, whose 0.5 is inside the value loss here",
    },
    needs=("value",),
)
