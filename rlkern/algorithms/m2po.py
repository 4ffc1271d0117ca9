# SPDX-License-Identifier: Apache-2.0
"""M2PO: no clip; the tokens furthest off policy are dropped until the rest are near on average.

    ℓ_t = −M_t·r_t·A        A = (R − mean of the group) / (std of the group + eps)
    M_t = 0 for the largest (log r)² among {A > 0, r > 1} ∪ {A < 0, r < 1}, until the mean of
          (log r)² over the rest of these is at most second_moment; else 1

Paper: arXiv 2510.01161, Algorithm 1. The sums are over the whole optimizer step, so M_t comes from
rlkern.statistics. r compares with the policy that sampled, however old it is. The loss is the mean
over the tokens of the batch, dropped ones included. ms-swift and Trinity follow the paper; AReaL
sorts all tokens, by the ratio of its proximal policy to the sampler.

>>> import torch, rlkern
>>> logprob = torch.log(torch.tensor([[0.5, 0.6, 0.8]]))
>>> old = torch.log(torch.tensor([[0.5, 0.5, 0.2]]))
>>> mask, advantage = torch.tensor([[True, True, True]]), torch.tensor([1.0])
>>> kept = rlkern.statistics.factor(logprob, old, advantage, mask, algorithm="m2po")
>>> kept.tolist()
[[1.0, 1.0, 0.0]]
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, correction=kept, algorithm="m2po"
... )
>>> round(out.loss.item(), 4)
-0.7333

The ratios are 1, 1.2 and 4. The mean of log² 1.2 = 0.03 and log² 4 = 1.92 is above 0.04; without
the second it is 0.03. Of the others the loss is −(1 + 1.2)/3.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="m2po",
    paper="arXiv 2510.01161, Algorithm 1",
    gate="importance",
    advantage="normalized",
    aggregation="token_mean",
    statistic="m2po",
    statistic_coef=("second_moment",),
    defaults={"second_moment": 0.04, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "second_moment": "τ of arXiv 2510.01161, which keeps it in all experiments",
        "kl_coef": "the paper trains without a KL",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: with one update no ratio leaves 1",
    },
)
