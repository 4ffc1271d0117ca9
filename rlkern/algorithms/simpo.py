# SPDX-License-Identifier: Apache-2.0
"""SimPO: the implicit reward is the mean log-probability of an answer, so no reference is needed.

    ℓ = −log σ(β·Δ − margin)
    Δ = log π(chosen) − log π(rejected), each per token

Paper: arXiv 2405.14734, eq. 6, whose γ is margin. The loss is the mean over the pairs of the batch.

>>> import torch, rlkern
>>> chosen, rejected, two = torch.tensor([-2.0]), torch.tensor([-4.0]), torch.tensor([2])
>>> found = rlkern.preference_loss(
...     chosen, rejected, kind="simpo", chosen_length=two, rejected_length=two, beta=2.0, margin=1.0
... )
>>> round(found.loss.item(), 4)
0.3133

Two tokens each: Δ = −1 + 2 = 1, and −log σ(2·1 − 1) is 0.3133.
"""

from rlkern.algorithms.registry import OfflineAlgorithm

ALGORITHM = OfflineAlgorithm(
    name="simpo",
    paper="arXiv 2405.14734, eq. 6",
    learns_from="pairs",
    loss="preference_loss",
    defaults={"beta": 2.0, "margin": 0.5},
    settings={"loss.kind": "simpo"},
    sources={
        "beta": "arXiv 2405.14734, §4",
        "margin": "TRL; the paper searches 0.3 to 1.6",
        "loss.kind": "arXiv 2405.14734, eq. 6",
    },
)
