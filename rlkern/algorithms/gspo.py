# SPDX-License-Identifier: Apache-2.0
"""GSPO: the clipped surrogate with one ratio for the whole answer, its geometric mean.

    ℓ_t = −min(s·A, clip(s, 1 − clip_low, 1 + clip_high)·A)
    s   = (Π_t π(o_t) / π_old(o_t))^(1/|o|)        A = (R − mean) / (std + eps) of the group

Paper: arXiv 2507.18071, eq. 5; s eq. 7. The loss is the mean over answers: all tokens of an answer
hold the same ℓ_t. verl's `gspo` is the token form (gspo_token), which clamps log s at 10 and has
the same gradient if each answer has one A. TRL has the form given here.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.5]]))
>>> mask, advantage = torch.tensor([[True, True], [True, True]]), torch.tensor([1.0, -1.0])
>>> logprob, old = logprob.expand(2, 2), old.expand(2, 2)
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="gspo")
>>> round(out.loss.item(), 4)
0.2069

The ratios 2 and 1 make s = √2. If A > 0, the clip holds and gives −1.0004; if A < 0, the loss is
1.4142. The average is 0.2069.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="gspo",
    paper="arXiv 2507.18071, eq. 5",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    level="sequence",
    advantage="normalized",
    aggregation="sequence_token_mean",
    defaults={"clip_low": 3e-4, "clip_high": 4e-4, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "arXiv 2507.18071, §5.1",
        "clip_high": "arXiv 2507.18071, §5.1",
        "kl_coef": "the authors' setting, in verl's pull request 2775",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "arXiv 2507.18071, §5.1",
    },
)
