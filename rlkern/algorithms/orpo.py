# SPDX-License-Identifier: Apache-2.0
"""ORPO: likelihood of the chosen answer and odds of both answers in one loss, without a reference.

    ℓ = −log p(chosen) − β·log σ(log odds(chosen) − log odds(rejected))
    odds(y) = p(y)/(1 − p(y)),  log p(y) the mean log-probability of the tokens of y

Paper: arXiv 2403.07691, eqs. 4, 6 and 7, whose λ is β. The loss is the mean over the pairs of the
batch; TRL averages the first term over the tokens of the batch.

>>> import math, torch, rlkern
>>> chosen, rejected = torch.tensor([math.log(0.75)]), torch.tensor([math.log(0.25)])
>>> one = torch.tensor([1])
>>> found = rlkern.preference_loss(
...     chosen, rejected, kind="orpo", chosen_length=one, rejected_length=one, beta=1.0
... )
>>> round(found.loss.item(), 4)
0.393

Odds of 3 and 1/3: −log(3/4) − log σ(log 9) = 0.2877 + 0.1054.
"""

from rlkern.algorithms.registry import OfflineAlgorithm

ALGORITHM = OfflineAlgorithm(
    name="orpo",
    paper="arXiv 2403.07691, eqs. 4, 6 and 7",
    learns_from="pairs",
    loss="preference_loss",
    defaults={"beta": 0.1},
    settings={"loss.kind": "orpo"},
    sources={"beta": "TRL", "loss.kind": "arXiv 2403.07691, eq. 6"},
)
