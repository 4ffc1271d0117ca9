# SPDX-License-Identifier: Apache-2.0
"""A*-PO: regression of the scaled log ratio to the reference on the optimal advantage.

    ℓ_t = (beta·Σ_u log(π(o_u) / π_ref(o_u)) − A)²        A = R − V*
    V*  = β₁·log mean of exp(R' / β₁) over answers of the reference to the same prompt

Paper: arXiv 2505.20686. old_logprob is the reference's log-probability here. V* is estimated from 8
answers per prompt at β₁ = 1/2, as in TRL's `a2po`. Paper and TRL estimate it once, before training,
and TRL leaves out prompts that the reference never answers right. rlkern's trainer has new prompts
in each rollout, so it samples the reference together with the policy and keeps every prompt. The
loss is the mean over answers: all tokens of an answer hold the same ℓ_t. beta is small, because A
is as large as a reward, while the log ratio grows with the answer.

>>> import torch, rlkern
>>> logprob, ref = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.5]]))
>>> mask, advantage = torch.tensor([[True, True]]), torch.tensor([1.0])
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=ref, beta=1.0, algorithm="a_star_po"
... )
>>> round(out.loss.item(), 4)
0.0942

The answer has twice the reference's probability: (log 2 − 1)² = 0.0942.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="a_star_po",
    paper="arXiv 2505.20686",
    gate="regression",
    gate_coef=("beta",),
    level="product",
    advantage="optimal",
    aggregation="sequence_token_mean",
    kl_estimator="k2",
    defaults={"beta": 1e-3, "kl_coef": 0.0, "entropy_coef": 0.0},
    sources={
        "beta": "β₂ of the paper, as in TRL",
        "kl_coef": "the regression has the KL in its target",
        "entropy_coef": "the paper has none",
    },
    needs=("reference", "reference_samples"),
    anchor="reference",
)
