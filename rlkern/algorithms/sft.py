# SPDX-License-Identifier: Apache-2.0
"""SFT: maximum likelihood of given right answers.

    ℓ_t = −log π(o_t)

This is REINFORCE with advantage 1 for every answer, and it uses the same loss.
Paper: arXiv 2203.02155, §3.5, the first of its three stages. The loss is the mean over the tokens
of the batch without those of the prompt, as in TRL if prompt and answer are separate.

>>> import torch, rlkern
>>> logits, token = torch.zeros(1, 2, 4), torch.tensor([[0, 3]])
>>> mask, advantage = torch.tensor([[True, True]]), torch.ones(1)
>>> round(rlkern.policy_loss(logits, token, advantage, mask, algorithm="sft").loss.item(), 4)
1.3863

Two tokens of probability 1/4: −log(1/4) is 1.3863.
"""

from rlkern.algorithms.registry import OfflineAlgorithm

ALGORITHM = OfflineAlgorithm(
    name="sft",
    paper="arXiv 2203.02155, §3.5",
    learns_from="answers",
    loss="policy_loss",
    gate="reinforce",
)
