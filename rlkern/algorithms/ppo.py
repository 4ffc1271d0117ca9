# SPDX-License-Identifier: Apache-2.0
"""PPO: the clipped surrogate over advantages estimated with a value function.

    ℓ_t = −min(r_t·A_t, clip(r_t, 1 − clip_low, 1 + clip_high)·A_t)        r_t = π(o_t) / π_old(o_t)

Paper: arXiv 1707.06347, eq. 7; A_t by GAE, eq. 11. The KL to a reference belongs in the reward. The
loss is the mean over the batch's tokens. verl always adds the dual clip (dual_clip_ppo).

>>> import torch, rlkern
>>> logits, token = torch.zeros(1, 1, 2), torch.tensor([[0]])
>>> old = torch.log(torch.tensor([[0.25]]))
>>> mask, advantage = torch.tensor([[True]]), torch.tensor([[1.0]])
>>> out = rlkern.policy_loss(logits, token, advantage, mask, old_logprob=old, algorithm="ppo")
>>> round(out.loss.item(), 4)
-1.2

The ratio is 0.5 / 0.25 = 2 and the advantage positive, so the clip at 1.2 holds.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="ppo",
    paper="arXiv 1707.06347, eq. 7",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="gae",
    aggregation="token_mean",
    defaults={"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0},
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
        "kl_coef": "the clipped objective has none",
        "entropy_coef": "0 for language models, as TRL and verl; the paper uses 0.01 on Atari",
        "batch.epochs": "TRL's PPO; table 3 of the paper has 10, for control",
        "advantage.discount": "TRL and verl: the reward of an answer comes at its end",
        "advantage.gae_lambda": "arXiv 1707.06347, table 3, as in TRL",
        "critic.coef": "TRL's PPO; table 5 of the paper has 1, for Atari",
        "critic.clip": "TRL's PPO, as the authors' code",
        "advantage.whiten": "TRL and verl, as the authors' code",
        "reward.kl_coef": "TRL's PPO; OpenRLHF has 0.01",
    },
    needs=("value",),
    reward_terms=("kl",),
)
