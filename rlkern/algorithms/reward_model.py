# SPDX-License-Identifier: Apache-2.0
"""Reward model: a score of an answer, learned from pairs by the Bradley–Terry model.

    ℓ = −log σ(r(chosen) − r(rejected)) + center_coef·(r(chosen) + r(rejected))²

Paper: arXiv 2203.02155, eq. 1. Pairs leave the mean score free; the second term, from arXiv
2312.09244, fixes it. The loss is the mean over the pairs of the batch. The result is a model with
one output, and the setting reward takes its folder.

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
