# SPDX-License-Identifier: Apache-2.0
"""REINFORCE++-baseline: the group's mean is the baseline, the whole batch gives the scale.

    ℓ_t = −min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A)
    A   = whitened over all tokens of the batch: R − mean of the group

Paper: arXiv 2501.03262. The loss is the mean over the tokens of the batch. An optional KL is a term
of the loss, by the k2 estimator, and not of the reward. An answer counts in the statistics once per
token, as in verl, and the variance has ddof 1. OpenRLHF's `reinforce_baseline` has ddof 0 and the
KL in the reward. Lite PPO instead divides by the deviation of the rewards, where each answer counts
once.

>>> import torch, rlkern
>>> reward, group = torch.tensor([9.0, 7.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1])
>>> mask = torch.ones(4, 1, dtype=torch.bool)
>>> advantage = rlkern.advantage.reinforce_plus_plus_baseline(reward, group, mask)
>>> [round(a, 4) for a in advantage.flatten().tolist()]
[1.2247, -1.2247, 0.0, 0.0]
>>> logprob, old = torch.log(torch.full((4, 1), 0.5)), torch.log(torch.full((4, 1), 0.25))
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, algorithm="reinforce_plus_plus_baseline"
... )
>>> round(out.loss.item(), 4)
0.2449

All ratios are 2, clipped at 1.2 where A > 0: 1.2247·(−1.2 + 2)/4 = 0.2449.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="reinforce_plus_plus_baseline",
    paper="arXiv 2501.03262",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="reinforce_plus_plus_baseline",
    aggregation="token_mean",
    kl_estimator="k2",
    defaults={"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0},
    sources={
        "clip_low": "arXiv 1707.06347, §3",
        "clip_high": "arXiv 1707.06347, §3",
        "kl_coef": "off, as in TRL's GRPO: a KL needs a reference model",
        "entropy_coef": "the paper has none",
    },
)
