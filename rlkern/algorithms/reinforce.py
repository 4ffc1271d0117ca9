# SPDX-License-Identifier: Apache-2.0
"""REINFORCE with the batch mean as baseline.

    ℓ_t = −A·log π(o_t)        A = R − mean of the rewards of the batch

Paper: Williams 1992, doi 10.1007/BF00992696, eq. 11. The return of an answer is its reward: one
score for all its tokens, undiscounted. The loss is the mean over the tokens of the batch; nanochat
takes the mean over each micro-batch.

>>> import torch, rlkern
>>> logits, token = torch.zeros(1, 2, 4), torch.tensor([[0, 3]])
>>> mask, reward = torch.tensor([[True, True]]), torch.tensor([3.0, 0.0, 0.0])
>>> advantage = rlkern.advantage.batch_centered(reward)
>>> advantage.tolist()
[2.0, -1.0, -1.0]
>>> out = rlkern.policy_loss(logits, token, advantage[:1], mask, algorithm="reinforce")
>>> round(out.loss.item(), 4)
2.7726

The first answer has two tokens of probability 1/4 under A = 2: the mean of −2·log(1/4) is 2.7726.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="reinforce",
    paper="Williams 1992, doi 10.1007/BF00992696, eq. 11",
    gate="reinforce",
    advantage="batch_centered",
    aggregation="token_mean",
    kl_estimator="k2",
    defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    sources={"kl_coef": "the paper has none", "entropy_coef": "the paper has none"},
)
