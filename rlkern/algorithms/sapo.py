# SPDX-License-Identifier: Apache-2.0
"""SAPO: a sigmoid of the ratio instead of the clip.

    ℓ_t = −A·(4/τ)·σ(τ·(r_t − 1))        τ = tau_positive if A > 0, else tau_negative
    A   = (R − mean) / (std + eps) of the group

Paper: arXiv 2511.20347. The gate's slope is 1 at ratio 1 and falls on both sides; tau_negative is
larger, so that bad answers are damped sooner. The loss is the mean over sequences of token means.
At ratio 1 it is −2·A/τ and not −A, so its value says little; its gradient is the policy gradient.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5]])), torch.log(torch.tensor([[0.25]]))
>>> mask, advantage = torch.tensor([[True]]), torch.tensor([1.0])
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="sapo")
>>> round(out.loss.item(), 4)
-2.9242

The ratio is 2 and τ = 1: −4·σ(1) = −4·0.7311 = −2.9242.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="sapo",
    paper="arXiv 2511.20347",
    gate="sapo",
    gate_coef=("tau_positive", "tau_negative"),
    advantage="normalized",
    aggregation="sequence_token_mean",
    defaults={"tau_positive": 1.0, "tau_negative": 1.05, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "tau_positive": "the paper's setting, as in TRL and verl",
        "tau_negative": "the paper's setting, as in TRL and verl",
        "kl_coef": "TRL and verl's recipe",
        "entropy_coef": "TRL and verl's recipe",
        "batch.minibatches": "verl's recipe for sapo",
    },
)
