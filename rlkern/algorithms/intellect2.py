# SPDX-License-Identifier: Apache-2.0
"""INTELLECT-2: GRPO clipped on two sides, with an upper bound δ where the advantage is negative.

    ℓ_t = −min(min(r_t, clip_cap)·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A) + kl_coef·KL_t
    A   = (R − mean) / (std + eps) of the group,  KL_t by k3 to the reference

Paper: arXiv 2505.07291; settings §4.1. If the rewards of a group agree, more sampling replaces the
group, as in DAPO. For clip_cap > 1 + clip_high the gate equals dual_clip_ppo's in value and
gradient: δ and the dual clip's c are the same bound. The loss is the mean over the tokens of the
batch, as in TRL with `delta` and its default loss.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.8]])), torch.log(torch.tensor([[0.1]]))
>>> mask, advantage = torch.tensor([[True]]), torch.tensor([-1.0])
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, ref_logprob=logprob, algorithm="intellect2"
... )
>>> out.loss.item()
4.0

The ratio is 8, held at δ = 4; the KL to a reference that agrees is 0.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="intellect2",
    paper="arXiv 2505.07291, §4.1",
    gate="dual_clip",
    gate_coef=("clip_low", "clip_high", "clip_cap"),
    advantage="normalized",
    aggregation="token_mean",
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.2,
        "clip_cap": 4.0,
        "kl_coef": 0.001,
        "entropy_coef": 0.0,
    },
    settings={"batch.minibatches": 8},
    sources={
        "clip_low": "arXiv 2505.07291, §4.1",
        "clip_high": "arXiv 2505.07291, §4.1",
        "clip_cap": "δ of arXiv 2505.07291, §4.1",
        "kl_coef": "arXiv 2505.07291, §4.1",
        "entropy_coef": "TRL's setting for this paper",
        "batch.minibatches": "the paper as others quote it; with one update no ratio leaves 1",
    },
    sampling="dynamic",
    needs=("reference",),
)
