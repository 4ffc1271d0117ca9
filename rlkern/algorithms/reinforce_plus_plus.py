# SPDX-License-Identifier: Apache-2.0
"""REINFORCE++: PPO's clip over returns whitened across the whole batch, without a value function.

    ℓ_t = −min(r_t·A_t, clip(r_t, 1 − clip_low, 1 + clip_high)·A_t)
    A_t = (G_t − mean of G) / √(variance of G + 1e-8)        over all tokens of the batch

Paper: arXiv 2501.03262. G_t is the return of the token rewards: the answer's reward at its end, and
−β·(log π_old − log π_ref) at each token. The loss is the mean over the tokens of the batch. The
variance has ddof 1 as in verl; OpenRLHF and NeMo have ddof 0.

>>> import torch, rlkern
>>> mask = torch.tensor([[True, True], [True, False]])
>>> advantage = rlkern.advantage.reinforce_plus_plus(torch.tensor([1.0, 0.0]), mask)
>>> [[round(a, 4) for a in row] for row in advantage.tolist()]
[[0.5774, 0.5774], [-1.1547, 0.0]]
>>> logprob, old = torch.log(torch.full((2, 2), 0.5)), torch.log(torch.full((2, 2), 0.25))
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, algorithm="reinforce_plus_plus"
... )
>>> round(out.loss.item(), 4)
0.3079

All ratios are 2, clipped at 1.2 where A > 0: (−2·1.2·0.5774 + 2·1.1547)/3 = 0.3079.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="reinforce_plus_plus",
    paper="arXiv 2501.03262",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="reinforce_plus_plus",
    aggregation="token_mean",
    kl_estimator="k2",
    defaults={"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"advantage.discount": 1.0, "reward.kl_coef": 0.01},
    sources={
        "clip_low": "arXiv 1707.06347, §3",
        "clip_high": "arXiv 1707.06347, §3",
        "kl_coef": "the paper has the KL in the reward",
        "entropy_coef": "the paper has none",
        "advantage.discount": "verl and OpenRLHF",
        "reward.kl_coef": "OpenRLHF's default",
    },
    reward_terms=("kl",),
)
