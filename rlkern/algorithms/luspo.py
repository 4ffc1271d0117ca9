# SPDX-License-Identifier: Apache-2.0
"""LUSPO: GSPO with each answer's loss multiplied by its length.

    ℓ_t = −min(s·A, clip(s, 1 − clip_low, 1 + clip_high)·A)
    s   = (Π_t π(o_t) / π_old(o_t))^(1/|o|)        A = (R − mean) / (std + eps) of the group

Paper: arXiv 2602.05261. The loss is the mean over answers of |o|·ℓ, which is the sum of ℓ_t over
the answer's tokens: GSPO's mean would shrink the gradient of a long answer's tokens. A constant
that divides the sum (aggregate.token_weight) only scales the learning rate. The paper's reward also
has a length term.

>>> import torch, rlkern
>>> mask = torch.tensor([[True, False, False], [True, True, True]])
>>> logprob, advantage = torch.log(torch.full((2, 3), 0.5)), torch.tensor([1.0, -1.0])
>>> rlkern.token_objective(logprob, advantage, mask, algorithm="luspo").loss.item()
1.0

At ratio 1 the answers of 1 and 3 tokens give −1·1 and 1·3, on average 1; in GSPO they cancel.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="luspo",
    paper="arXiv 2602.05261",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    level="sequence",
    advantage="normalized",
    aggregation="sequence_token_sum",
    defaults={"clip_low": 2e-3, "clip_high": 2.5e-3, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 8},
    sources={
        "clip_low": "arXiv 2602.05261, §5.1",
        "clip_high": "arXiv 2602.05261, §5.1",
        "kl_coef": "TRL",
        "entropy_coef": "TRL",
        "batch.minibatches": "arXiv 2602.05261, §5.1",
    },
)
