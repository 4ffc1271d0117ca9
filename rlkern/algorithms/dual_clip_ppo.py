# SPDX-License-Identifier: Apache-2.0
"""Dual-clip PPO: PPO with a bound on the loss of bad tokens that have become likely.

    ℓ_t = −min(r_t·A_t, clip(r_t, 1 − clip_low, 1 + clip_high)·A_t)    if A_t ≥ 0
    ℓ_t = min(the same, −clip_cap·A_t)                                 if A_t < 0

Paper: arXiv 1912.09729. If A_t < 0, PPO does not bound the ratio from above, so one token can have
any loss; here a token beyond clip_cap has no gradient. GAE gives A_t. The loss is the mean over the
tokens of the batch. verl's `vanilla` loss always has this bound; NeMo, OpenRLHF, slime and AReaL
leave it off.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.8]])), torch.log(torch.tensor([[0.1]]))
>>> mask, advantage = torch.tensor([[True]]), torch.tensor([-1.0])
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, algorithm="dual_clip_ppo"
... )
>>> out.loss.item()
3.0

The ratio is 8 and so would be the loss, but its bound is 3.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="dual_clip_ppo",
    paper="arXiv 1912.09729",
    gate="dual_clip",
    gate_coef=("clip_low", "clip_high", "clip_cap"),
    advantage="gae",
    aggregation="token_mean",
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.2,
        "clip_cap": 3.0,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
    },
    settings={
        "batch.epochs": 4,
        "advantage.discount": 1.0,
        "advantage.gae_lambda": 0.95,
        "critic.coef": 0.1,
        "critic.clip": 0.2,
        "advantage.whiten": True,
        "reward.kl_coef": 0.05,
    },
    sources={
        "clip_low": "arXiv 1707.06347, §3",
        "clip_high": "arXiv 1707.06347, §3",
        "clip_cap": "the paper's setting, as in verl",
        "kl_coef": "the clipped objective has none",
        "entropy_coef": "0 for language models, as TRL and verl",
        "batch.epochs": "TRL's PPO",
        "advantage.discount": "TRL and verl: the reward of an answer comes at its end",
        "advantage.gae_lambda": "arXiv 1707.06347, table 3, as in TRL",
        "critic.coef": "TRL's PPO",
        "critic.clip": "TRL's PPO; verl has 0.5",
        "advantage.whiten": "TRL and verl, as the authors' code",
        "reward.kl_coef": "TRL's PPO",
    },
    needs=("value",),
    reward_terms=("kl",),
)
