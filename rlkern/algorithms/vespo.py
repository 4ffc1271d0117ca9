# SPDX-License-Identifier: Apache-2.0
"""VESPO: REINFORCE whose weight is a smooth bump of the whole answer's importance ratio.

    ℓ_t = −sg(φ(W))·A·log π(o_t)        φ(W) = W^k·exp(λ·(1 − W))        W = Π_t π(o_t) / π_old(o_t)
    k, λ = k_positive, lambda_positive if A ≥ 0, else k_negative, lambda_negative

Paper: arXiv 2602.10693, §3.4. W compares with the sampler; if its log-probabilities differ from the
trainer's, give the sampler's as old_logprob. φ(1) = 1, and φ damps both tails of W, so an answer
far off policy fades out. A is the reward minus the mean of the group, eq. 20; TRL also divides it
by the std. The loss is the mean over the tokens of the batch, as in TRL, which clamps log W to
[−18.4, 20]; here nothing is clamped.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.5]]))
>>> mask, advantage = torch.tensor([[True, True]]), torch.tensor([1.0])
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="vespo")
>>> round(out.loss.item(), 4)
0.138

The ratios 2 and 1 make W = 2 and φ = 2²·e^−3 = 0.1991; times log 2 that is 0.138.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="vespo",
    paper="arXiv 2602.10693, §3.4",
    gate="vespo",
    gate_coef=("k_positive", "lambda_positive", "k_negative", "lambda_negative"),
    level="product",
    advantage="centered",
    aggregation="token_mean",
    defaults={
        "k_positive": 2.0,
        "lambda_positive": 3.0,
        "k_negative": 3.0,
        "lambda_negative": 2.0,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
    },
    settings={"batch.minibatches": 8},
    sources={
        "k_positive": "c1 of arXiv 2602.10693, §3.4",
        "lambda_positive": "c2 of arXiv 2602.10693, §3.4",
        "k_negative": "c1 of arXiv 2602.10693, §3.4",
        "lambda_negative": "c2 of arXiv 2602.10693, §3.4",
        "kl_coef": "TRL",
        "entropy_coef": "TRL",
        "batch.minibatches": "arXiv 2602.10693, appendix D; with one update W is 1",
    },
)
