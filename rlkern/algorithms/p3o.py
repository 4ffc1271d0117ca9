# SPDX-License-Identifier: Apache-2.0
"""P3O: REINFORCE whose importance weights are capped by the batch's own effective sample size.

    ℓ_t = −sg(min(r_t, ESS))·A·log π(o_t)        ESS = (Σ r)² / (N·Σ r²)
    A   = (R − mean of the group) / (std of the group + eps)

Paper: arXiv 2605.12380. ESS is over the N tokens of the whole optimizer step, so the weight comes
from rlkern.statistics: 1 on policy, and the smaller the more unequal the ratios are. No token loses
its gradient, and no clip width has to be chosen. The paper also adds (1 − ESS)·KL(π ‖ π_old),
which is not here: no term of the loss beside the gate has a weight of the batch. The loss is the
mean over the tokens of the batch, as in the authors' FeynRL.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.6, 0.2]])), torch.log(torch.tensor([[0.2, 0.2]]))
>>> mask, advantage = torch.tensor([[True, True]]), torch.tensor([1.0])
>>> weight = rlkern.statistics.factor(logprob, old, advantage, mask, algorithm="p3o")
>>> [round(w, 4) for w in weight[0].tolist()]
[0.8, 0.8]
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, correction=weight, algorithm="p3o"
... )
>>> round(out.loss.item(), 4)
0.8481

The ratios are 3 and 1: ESS = 4² / (2·10) = 0.8, and −0.8·(log 0.6 + log 0.2)/2 = 0.8481.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="p3o",
    paper="arXiv 2605.12380",
    gate="reinforce",
    advantage="normalized",
    aggregation="token_mean",
    statistic="ess",
    defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "kl_coef": "the authors' FeynRL trains without a reference",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: with one update every weight is 1",
    },
)
