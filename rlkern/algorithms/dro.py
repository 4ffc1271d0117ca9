# SPDX-License-Identifier: Apache-2.0
"""DRO: the policy gradient with a quadratic pull towards the old policy instead of a clip.

    ℓ_t = −(A·log π(o_t) − (beta/2)·(log r_t)²)        r_t = π(o_t) / π_old(o_t)

Paper: arXiv 2405.19107. The paper takes the log ratio of the whole answer to the reference, and its
A = R − V(prompt) has a learned V. verl's `dro` has this form per token and leaves A to the caller;
here the mean of the group takes the place of V. The loss is the mean over the tokens of the batch.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5]])), torch.log(torch.tensor([[0.25]]))
>>> mask, advantage = torch.tensor([[True]]), torch.tensor([1.0])
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, beta=0.5, algorithm="dro"
... )
>>> round(out.loss.item(), 4)
0.8133

At ratio 2: log 2 + 0.25·(log 2)² = 0.8133.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="dro",
    paper="arXiv 2405.19107",
    gate="dro",
    gate_coef=("beta",),
    advantage="centered",
    aggregation="token_mean",
    kl_estimator="k2",
    defaults={"beta": 0.1, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "beta": "chosen here: verl demands a value, and the paper's is for whole answers",
        "kl_coef": "the quadratic term takes its place",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: with one update the log ratio is 0, and nothing pulls",
    },
)
