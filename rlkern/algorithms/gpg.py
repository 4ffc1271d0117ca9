# SPDX-License-Identifier: Apache-2.0
"""GPG: the plain policy gradient with the group's mean as baseline, rescaled for idle groups.

    ℓ_t = −A·log π(o_t)        A = α·(R − mean of the group)
    α   = samples / samples of groups whose rewards differ

Paper: arXiv 2504.02546. The loss is the mean over the tokens of the batch. It has no ratio, clip,
KL or reference. verl's α instead counts the samples whose reward is not 0.

>>> import torch, rlkern
>>> reward, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
>>> advantage = rlkern.advantage.gpg(reward, group)
>>> advantage.tolist()
[1.0, -1.0, 0.0, 0.0]
>>> logprob = torch.log(torch.tensor([[0.25], [0.5], [0.5], [0.5]]))
>>> out = rlkern.token_objective(logprob, advantage, logprob < 0, algorithm="gpg")
>>> round(out.loss.item(), 4)
0.1733

α = 4/2 makes up for the group that agrees: (log 4 − log 2)/4 = 0.1733.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="gpg",
    paper="arXiv 2504.02546",
    gate="reinforce",
    advantage="gpg",
    aggregation="token_mean",
    kl_estimator="k2",
    defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    sources={"kl_coef": "the paper has none", "entropy_coef": "the paper has none"},
)
