# SPDX-License-Identifier: Apache-2.0
"""DPO: a policy learns from pairs of answers like a classifier, without reward or value model.

    ℓ = −log σ(β·Δ)
    Δ = log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected)

Paper: arXiv 2305.18290, eq. 7. The loss is the mean over the pairs of the batch, and log π is the
sum over the tokens of an answer. The setting kind replaces this equation by any other kind of
rlkern.preference_loss. β is 0.1 in TRL and here, 0.05 in NeMo.

>>> import torch, rlkern
>>> chosen, rejected = torch.tensor([-2.0]), torch.tensor([-4.0])
>>> ref_chosen, ref_rejected = torch.tensor([-3.0]), torch.tensor([-3.0])
>>> found = rlkern.preference_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.5)
>>> round(found.loss.item(), 4)
0.3133

The chosen answer gained 1 and the rejected one lost 1: Δ = 2, and −log σ(0.5·2) is 0.3133.
"""

from rlkern.algorithms.registry import OfflineAlgorithm

ALGORITHM = OfflineAlgorithm(
    name="dpo",
    paper="arXiv 2305.18290, eq. 7",
    learns_from="pairs",
    loss="preference_loss",
    needs=("reference",),
    defaults={"beta": 0.1},
    sources={"beta": "arXiv 2305.18290, appendix B; TRL"},
)
