# SPDX-License-Identifier: Apache-2.0
"""Lite PPO: the group's mean, the batch's standard deviation, and the mean over tokens.

    ℓ_t = −min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A)
    A   = (R − mean of the group) / (std of the batch + eps)

Paper: arXiv 2508.08221. The loss is the mean over the tokens of the batch. The deviation is that of
the raw rewards, with TRL's eps and ddof (`scale_rewards="batch"`). A group that nearly agrees is
not scaled up, while GRPO does scale it up.

>>> import torch, rlkern
>>> reward, group = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1])
>>> advantage = rlkern.advantage.batch_normalized(reward, group, eps=0.0)
>>> [round(a, 4) for a in advantage.tolist()]
[1.2247, -1.2247, 0.0, 0.0]
>>> mask = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
>>> logprob = torch.log(torch.full((4, 2), 0.5))
>>> out = rlkern.token_objective(logprob, advantage, mask, algorithm="lite_ppo")
>>> round(out.loss.item(), 4)
-0.2449

Five tokens at ratio 1, two of them with A = 1.2247 and one with −1.2247: −1.2247/5 = −0.2449.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="lite_ppo",
    paper="arXiv 2508.08221",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="batch_normalized",
    aggregation="token_mean",
    defaults={"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0},
    sources={
        "clip_low": "arXiv 1707.06347, §3: the paper keeps PPO's own loss",
        "clip_high": "arXiv 1707.06347, §3: the paper keeps PPO's own loss",
        "kl_coef": "the paper trains without a KL",
        "entropy_coef": "the paper has none",
    },
)
