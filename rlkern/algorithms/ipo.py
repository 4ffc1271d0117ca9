# SPDX-License-Identifier: Apache-2.0
"""IPO: a square pulls each pair to a fixed margin, so that sure preferences do not exceed it.

    ℓ = (Δ − 1/(2β))²
    Δ = log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected), each per token

Paper: arXiv 2310.12036, eq. 17, whose τ is β. The loss is the mean over the pairs of the batch. The
log-probabilities are averaged over the tokens of an answer, as TRL and the paper's authors do.
OpenRLHF sums them, as kind ipo_sum of dpo does here.

>>> import torch, rlkern
>>> chosen, rejected, ref = torch.tensor([-2.0]), torch.tensor([-8.0]), torch.tensor([-4.0])
>>> two = torch.tensor([2])
>>> found = rlkern.preference_loss(
...     chosen, rejected, ref, ref, kind="ipo", chosen_length=two, rejected_length=two, beta=0.25
... )
>>> found.loss.item()
1.0

Two tokens each: Δ = (−2 + 4)/2 − (−8 + 4)/2 = 3, and (3 − 1/0.5)² is 1.
"""

from rlkern.algorithms.registry import OfflineAlgorithm

ALGORITHM = OfflineAlgorithm(
    name="ipo",
    paper="arXiv 2310.12036, eq. 17",
    learns_from="pairs",
    loss="preference_loss",
    needs=("reference",),
    defaults={"beta": 0.1},
    settings={"loss.kind": "ipo"},
    sources={"beta": "TRL", "loss.kind": "arXiv 2310.12036, eq. 17"},
)
