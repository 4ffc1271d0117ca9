# SPDX-License-Identifier: Apache-2.0
"""GMPO: the geometric mean of token ratios, each clipped before it is averaged.

    ℓ_t = −A·exp((1/|o|)·Σ_u c_u)        d_u = log π(o_u) − log π_old(o_u)
    c_u = min(d_u, clip_high) if A ≥ 0, else max(d_u, −clip_low)
    A   = (R − mean) / (std + eps) of the group

Paper: arXiv 2507.20673. The widths bound the log ratio, so ratios lie between e^−0.4 and e^0.4. The
loss is the mean over answers: all tokens of an answer hold the same ℓ_t. GSPO clips after
averaging, GMPO before. Each answer has one A. TRL and verl (`geo_mean`) agree; if A varies by
token, verl averages it.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.5]]))
>>> mask, advantage = torch.tensor([[True, True]]), torch.tensor([1.0])
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="gmpo")
>>> round(out.loss.item(), 4)
-1.2214

The ratios are 2 and 1; log 2 is held at 0.4, so the loss is −exp((0.4 + 0)/2) = −1.2214.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="gmpo",
    paper="arXiv 2507.20673",
    gate="importance",
    gate_coef=("clip_low", "clip_high"),
    level="clipped_sequence",
    advantage="normalized",
    aggregation="sequence_token_mean",
    defaults={"clip_low": 0.4, "clip_high": 0.4, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "arXiv 2507.20673, §3",
        "clip_high": "arXiv 2507.20673, §3",
        "kl_coef": "TRL; verl's recipe has 0.001",
        "entropy_coef": "TRL and verl's recipe",
        "batch.minibatches": "verl's recipe for gmpo",
    },
)
