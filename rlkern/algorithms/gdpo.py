# SPDX-License-Identifier: Apache-2.0
"""GDPO: GRPO for several rewards, each normalized within the group before they are summed.

    ℓ_t = −min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A)
    A   = whitened over the batch: Σ_k (R_k − mean_k) / (std_k + eps), mean and std of the group

Paper: arXiv 2601.05242. In a sum of raw rewards the reward with the largest spread decides, and
different mixtures of rewards with the same sum get the same advantage. The loss is the mean over
sequences of token means. The batch's statistics count answers, as in the paper and TRL
(`normalize_then_sum`); verl's count tokens.

>>> import torch, rlkern
>>> reward = torch.tensor([[1.0, 10.0], [0.0, 10.0], [1.0, 30.0], [0.0, 10.0]])
>>> group = torch.tensor([0, 0, 1, 1])
>>> advantage = rlkern.advantage.gdpo(reward, group, eps=0.0, ddof=0)
>>> [round(a, 4) for a in advantage.tolist()]
[0.6325, -0.6325, 1.2649, -1.2649]
>>> logprob, old = torch.log(torch.full((4, 1), 0.5)), torch.log(torch.full((4, 1), 0.25))
>>> out = rlkern.token_objective(logprob, advantage, old < 0, old_logprob=old, algorithm="gdpo")
>>> round(out.loss.item(), 4)
0.3795

All ratios are 2, clipped at 1.2 where A > 0: 1.8974·(−1.2 + 2)/4 = 0.3795.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="gdpo",
    paper="arXiv 2601.05242",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="gdpo",
    aggregation="sequence_token_mean",
    defaults={"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0},
    sources={
        "clip_low": "arXiv 1707.06347, §3",
        "clip_high": "arXiv 1707.06347, §3",
        "kl_coef": "off, as in TRL's GRPO: a KL needs a reference model",
        "entropy_coef": "TRL",
    },
    needs=("several_rewards",),
)
