# SPDX-License-Identifier: Apache-2.0
"""80/20: DAPO that learns from the fifth of the tokens with the highest entropy alone.

    ℓ_t = −M_t·min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A)
    M_t = 1 where H_t ≥ the (1 − entropy_share) quantile of the batch, else 0
    A   = (R − mean of the group) / (std of the group + eps)        0 < number of right answers < G

Paper: arXiv 2506.01939, "Beyond the 80/20 rule": the few tokens where an answer forks carry what is
learned. The quantile is of all tokens of the optimizer step, so M_t comes from rlkern.statistics.
Sampling and punishment of long answers are DAPO's. The loss is the mean over the tokens of the
batch, dropped ones included. TRL's `top_entropy_quantile` does the same to any of its losses.

>>> import torch, rlkern
>>> logprob, entropy = torch.zeros(1, 6), torch.tensor([[0.1, 0.5, 0.2, 0.9, 0.0, 0.3]])
>>> mask, advantage = entropy < 1, torch.tensor([1.0])
>>> kept = rlkern.statistics.factor(
...     logprob, logprob, advantage, mask, entropy=entropy, algorithm="high_entropy"
... )
>>> kept.tolist()
[[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]]
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=logprob, correction=kept, algorithm="high_entropy"
... )
>>> round(out.loss.item(), 4)
-0.3333

Of six numbers the 0.8 quantile is the second largest; two of six tokens are learned from.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="high_entropy",
    paper="arXiv 2506.01939",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="normalized",
    aggregation="token_mean",
    statistic="entropy_quantile",
    statistic_coef=("entropy_share",),
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.28,
        "entropy_share": 0.2,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
    },
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "DAPO, on which arXiv 2506.01939 builds",
        "clip_high": "DAPO, on which arXiv 2506.01939 builds",
        "entropy_share": "ρ of arXiv 2506.01939",
        "kl_coef": "DAPO, on which arXiv 2506.01939 builds",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here, as for dapo",
    },
    sampling="dynamic",
    reward_terms=("overlong",),
)
