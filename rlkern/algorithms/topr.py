# SPDX-License-Identifier: Apache-2.0
"""TOPR: good answers are imitated as they are, bad ones only as far as they are still likely.

    ℓ_t = −A·log π(o_t)                    if A > 0
    ℓ_t = −sg(min(W, 1))·A·log π(o_t)      otherwise        W = Π_t π(o_t) / π_old(o_t)

Paper: arXiv 2503.14286. A is the reward, positive or negative, because a baseline would change
which answers count as bad. If no reward is below 0, for example if wrong answers get 0, the policy
only imitates right answers. W compares with the policy that sampled, however old it is. The loss is
the mean over answers of token sums, because log π of an answer is a sum; a constant that divides
the sums (aggregate.token_weight) only scales the learning rate.

>>> import torch, rlkern
>>> logprob = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
>>> old = torch.log(torch.tensor([[0.25, 0.5], [0.5, 1.0]]))
>>> mask, reward = torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, -1.0])
>>> out = rlkern.token_objective(logprob, reward, mask, old_logprob=old, algorithm="topr")
>>> round(out.loss.item(), 4)
0.3466

The good answer gives 2·log 2 and the bad one, at W = 1/2, −log 2; the mean is log 2 / 2 = 0.3466.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="topr",
    paper="arXiv 2503.14286",
    gate="topr",
    level="product",
    advantage="reward",
    aggregation="sequence_token_sum",
    kl_estimator="k2",
    defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "kl_coef": "the paper trains without a KL",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: with one update W is 1",
    },
)
