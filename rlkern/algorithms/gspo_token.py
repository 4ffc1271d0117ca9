# SPDX-License-Identifier: Apache-2.0
"""GSPO-token: GSPO's ratio in value, the token's ratio in gradient, so that A may vary by token.

    ℓ_t = −min(s_t·A_t, clip(s_t, 1 − clip_low, 1 + clip_high)·A_t)
    s_t = sg(s)·π(o_t) / sg(π(o_t))        s = (Π_t π(o_t) / π_old(o_t))^(1/|o|)

Paper: arXiv 2507.18071, eq. 13; s_t eq. 14. The loss is the mean over sequences of token means.
verl calls this `gspo` and clamps log s_t at 10.

>>> import torch, rlkern
>>> logprob = torch.log(torch.tensor([[0.4, 0.4]])).requires_grad_()
>>> old, mask = torch.log(torch.tensor([[0.2, 0.8]])), torch.tensor([[True, True]])
>>> advantage = torch.tensor([[1.0, 3.0]])
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="gspo_token")
>>> out.loss.backward()
>>> round(out.loss.item(), 4), [round(g, 4) for g in logprob.grad.flatten().tolist()]
(-2.0, [-0.5, -1.5])

The ratios 2 and 1/2 make s = 1. The gradient of each token is half its advantage; GSPO would give
both tokens −1.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="gspo_token",
    paper="arXiv 2507.18071, eq. 13",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    level="sequence_token",
    advantage="normalized",
    aggregation="sequence_token_mean",
    defaults={"clip_low": 3e-4, "clip_high": 4e-4, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "arXiv 2507.18071, §5.1, for GSPO",
        "clip_high": "arXiv 2507.18071, §5.1, for GSPO",
        "kl_coef": "the authors' setting, in verl's pull request 2775",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "arXiv 2507.18071, §5.1, for GSPO",
    },
)
