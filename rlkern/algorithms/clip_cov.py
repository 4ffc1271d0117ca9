# SPDX-License-Identifier: Apache-2.0
"""Clip-Cov: a few of the tokens that would lower the entropy most lose their gradient.

    ℓ_t = −M_t·min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A)
    M_t = 0 for max(1, ⌊share·N⌋) tokens, drawn among those with
          covariance_low ≤ (A − mean of A)·(log π − mean of log π) ≤ covariance_high; else 1

Paper: arXiv 2505.22617. The means and the draw are over the N tokens of the whole optimizer step,
so M_t comes from rlkern.statistics. A is the reward minus the mean of the group, over its std. The
loss is the mean over the tokens of the batch, dropped ones included. verl draws among tokens that
the clip of the ratio does not hold already; here the draw does not look at the ratio. Its recipe
widens that clip to 1 on both sides, SkyRL's keeps 0.2.

>>> import torch, rlkern
>>> logprob = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1]]))
>>> mask, advantage = torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, -1.0])
>>> kept = rlkern.statistics.factor(logprob, logprob, advantage, mask, algorithm="clip_cov")
>>> int(kept.sum()), kept[0, 1].item(), kept[1, 0].item()
(3, 1.0, 1.0)
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=logprob, correction=kept, algorithm="clip_cov"
... )
>>> abs(out.loss.item())
0.25

log 0.9 and log 0.1 lie 1.0986 from their mean: the likely token of the good answer and the unlikely
one of the bad answer have covariance 1.0986, the others −1.0986. One of the first two is dropped,
so the loss is −(1 − 1 − 1)/4 or −(1 + 1 − 1)/4.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="clip_cov",
    paper="arXiv 2505.22617",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="normalized",
    aggregation="token_mean",
    statistic="clip_cov",
    statistic_coef=("share", "covariance_low", "covariance_high"),
    defaults={
        "clip_low": 1.0,
        "clip_high": 1.0,
        "share": 2e-4,
        "covariance_low": 1.0,
        "covariance_high": 5.0,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
    },
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "verl's recipe for clip_cov",
        "clip_high": "verl's recipe for clip_cov",
        "share": "r of arXiv 2505.22617, as in verl and SkyRL",
        "covariance_low": "ω_low of arXiv 2505.22617, as in verl and SkyRL",
        "covariance_high": "ω_high of arXiv 2505.22617, as in verl and SkyRL",
        "kl_coef": "the paper trains without a KL",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: verl's recipe has 8, of 32 prompts each",
    },
)
