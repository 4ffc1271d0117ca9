# SPDX-License-Identifier: Apache-2.0
"""CFPO: a parabola around ratio 1 takes the clip's place, and has a gradient everywhere.

    ℓ_t = −(r_t·A − |A|/(2·width)·(r_t − 1)²)        r_t = π(o_t) / π_old(o_t)
    A   = (R − mean of the group) / (std of the group + eps)

Paper: arXiv 2601.22801. The loss is least at r = 1 + width for A > 0 and at r = 1 − width
for A < 0, where PPO's clip begins; beyond, it pulls back. The penalty bounds the total variation
between the policies; the loss is that of SPO, arXiv 2401.16025. The paper puts it in the place of
GRPO's clip, and of RLOO's. The loss is the mean over answers of token means, as in GRPO.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5]])), torch.log(torch.tensor([[0.4]]))
>>> mask, advantage = torch.tensor([[True]]), torch.tensor([2.0])
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, width=0.25, algorithm="cfpo"
... )
>>> round(out.loss.item(), 4)
-2.25

At ratio 1.25: −(1.25·2 − 2/0.5·0.25²) = −2.25, the least there is.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="cfpo",
    paper="arXiv 2601.22801",
    gate="cfpo",
    gate_coef=("width",),
    advantage="normalized",
    aggregation="sequence_token_mean",
    defaults={"width": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "width": "ε of the clip that it replaces: PPO's 0.2",
        "kl_coef": "the parabola takes its place",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: with one update the ratio is 1, and nothing pulls",
    },
)
