# SPDX-License-Identifier: Apache-2.0
"""KL-Cov: the few tokens that would lower the entropy most are pulled back to the old policy.

    ℓ_t = −r_t·A + penalty_t·|log r_t|
    penalty_t = penalty_coef for the max(1, ⌊share·N⌋) tokens with the largest
                (A − mean of A)·(log π − mean of log π), else 0
    A   = (R − mean of the group) / (std of the group + eps)

Paper: arXiv 2505.22617. The means and the order are over the N tokens of the whole optimizer step,
so penalty_t comes from rlkern.statistics. No clip holds the ratio. The loss is the mean over the
tokens of the batch. verl and SkyRL have this form.

>>> import torch, rlkern
>>> logprob = torch.log(torch.tensor([[0.9, 0.1], [0.8, 0.2]]))
>>> old = torch.log(torch.tensor([[0.45, 0.1], [0.8, 0.2]]))
>>> mask, advantage = torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, -1.0])
>>> penalty = rlkern.statistics.factor(logprob, old, advantage, mask, algorithm="kl_cov")
>>> penalty.tolist()
[[1.0, 0.0], [0.0, 0.0]]
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, penalty=penalty, algorithm="kl_cov"
... )
>>> round(out.loss.item(), 4)
-0.0767

The likely token of the good answer has the largest covariance. Its ratio is 2, the others' are 1:
(−2 + log 2 − 1 + 1 + 1)/4 = −0.0767.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="kl_cov",
    paper="arXiv 2505.22617",
    gate="importance",
    advantage="normalized",
    aggregation="token_mean",
    statistic="kl_cov",
    statistic_row="penalty",
    statistic_coef=("share", "penalty_coef"),
    defaults={"share": 2e-4, "penalty_coef": 1.0, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "share": "k of arXiv 2505.22617, as in verl and SkyRL",
        "penalty_coef": "β of arXiv 2505.22617, as in verl",
        "kl_coef": "the paper trains without a KL to a reference",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: verl's recipe has 8, of 32 prompts each",
    },
)
