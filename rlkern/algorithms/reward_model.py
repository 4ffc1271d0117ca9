# SPDX-License-Identifier: Apache-2.0
"""Reward model: a score of an answer, learned from pairs by the Bradley–Terry model.

    ℓ = −log σ(r(chosen) − r(rejected)) + center_coef·(r(chosen) + r(rejected))²

Paper: arXiv 2203.02155, eq. 1; the second term, which pins the mean that pairs leave free, is that
of arXiv 2312.09244. The loss is the mean over the pairs of the batch. What comes out is a model
with one output, which the setting reward takes as a reward.

>>> import torch, rlkern
>>> chosen, rejected = torch.tensor([2.0]), torch.tensor([1.0])
>>> round(rlkern.reward_model_loss(chosen, rejected, center_coef=0.01).loss.item(), 4)
0.4033

The lead is 1: −log σ(1) is 0.3133, and 0.01·(2 + 1)² is 0.09.
"""

from rlkern.algorithms.registry import OfflineAlgorithm

ALGORITHM = OfflineAlgorithm(
    name="reward_model",
    paper="arXiv 2203.02155, eq. 1",
    learns_from="pairs",
    trains="reward_model",
    loss="reward_model_loss",
    defaults={"center_coef": 0.01},
    sources={"center_coef": "arXiv 2312.09244; the value that TRL recommends"},
)
