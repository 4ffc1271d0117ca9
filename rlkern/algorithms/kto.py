# SPDX-License-Identifier: Apache-2.0
"""KTO: each answer is judged by itself, good or bad, and gains over the reference saturate.

    ℓ = desirable_coef·(1 − σ(β·(h − z)))    of a desirable answer
    ℓ = undesirable_coef·(1 − σ(β·(z − h)))  of an undesirable one
    h = log π/π_ref of the answer,  z = max(0, mean of log π/π_ref over mismatched answers)

Paper: arXiv 2402.01306, eqs. 7 and 8, without the constant λ_y. The loss is the mean over the
answers of the batch, and log π is the sum over the tokens of an answer. z scores the same answers,
each after the prompt of the answer before it in the batch, and takes no gradient, as in TRL and in
the code of the paper's authors.

>>> import torch, rlkern
>>> logprob, ref_logprob = torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -4.0])
>>> desirable, z = torch.tensor([True, False]), torch.tensor(1.0)
>>> round(rlkern.kto_loss(logprob, ref_logprob, desirable, z, beta=1.0).loss.item(), 4)
0.2689

h is 2 and 0. Each is on the right side of z = 1 by 1, so both lose 1 − σ(1) = 0.2689.
"""

from rlkern.algorithms.registry import OfflineAlgorithm

ALGORITHM = OfflineAlgorithm(
    name="kto",
    paper="arXiv 2402.01306, eqs. 7 and 8",
    learns_from="judged",
    loss="kto_loss",
    needs=("reference",),
    defaults={"beta": 0.1, "desirable_coef": 1.0, "undesirable_coef": 1.0},
    sources={
        "beta": "arXiv 2402.01306, §4.3; TRL",
        "desirable_coef": "arXiv 2402.01306, §4.3: 1 where both kinds are equally many; TRL",
        "undesirable_coef": "arXiv 2402.01306, §4.3: 1 where both kinds are equally many; TRL",
    },
)
