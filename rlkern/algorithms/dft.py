# SPDX-License-Identifier: Apache-2.0
"""DFT: maximum likelihood of given right answers that trusts a token as far as it is likely.

    ℓ_t = −sg(π(o_t))·log π(o_t)

Paper: arXiv 2508.05629. The gradient of SFT is that of a policy whose reward is 1/π: rare tokens
move the model most. DFT multiplies by π, and so no longer asks for what the model finds absurd; it
is meant for a model that is pre-trained, since an untrained one finds everything unlikely. The loss
is the mean over the tokens of the batch without those of the prompt, as in SFT. TRL
(`loss_type="dft"`) and the paper have it per token, too.

>>> import torch, rlkern
>>> logits, token = torch.zeros(1, 2, 4), torch.tensor([[0, 3]])
>>> mask, advantage = torch.tensor([[True, True]]), torch.ones(1)
>>> round(rlkern.policy_loss(logits, token, advantage, mask, algorithm="dft").loss.item(), 4)
0.3466

Two tokens of probability 1/4: −(1/4)·log(1/4) is 0.3466.
"""

from rlkern.algorithms.registry import OfflineAlgorithm

ALGORITHM = OfflineAlgorithm(
    name="dft",
    paper="arXiv 2508.05629",
    learns_from="answers",
    loss="policy_loss",
    gate="dft",
)
