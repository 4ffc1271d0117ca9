# SPDX-License-Identifier: Apache-2.0
"""FIPO: a token counts more if what follows it became likelier in the updates before.

    ℓ_t = −f_t·min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A)
    f_t = clip(exp Σ_{k≥t} γ^{k−t}·log r_k, 1 − future_low, 1 + future_high)    γ = 2^(−1/half_life)
    A   = (R − mean of the group) / (std of the group + eps)        0 < number of right answers < G

Paper: arXiv 2603.19835. f_t has no gradient and comes from rlkern.statistics; in the first update
on a rollout every ratio is 1, and so is every f_t. Sampling and punishment of long answers are
DAPO's. The loss is the mean over the tokens of the batch. ms-swift and the authors' script for 32B
also leave tokens of very high ratios out of the sum, and hold f_t at 1 where A < 0 and the ratio is
high; here both go in as they are, within the bounds of f_t.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5, 0.55]])), torch.log(torch.tensor([[0.5, 0.5]]))
>>> mask, advantage = torch.tensor([[True, True]]), torch.tensor([1.0])
>>> factor = rlkern.statistics.factor(
...     logprob, old, advantage, mask, half_life=1.0, algorithm="fipo"
... )
>>> [round(f, 4) for f in factor[0].tolist()]
[1.0488, 1.1]
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, correction=factor, algorithm="fipo"
... )
>>> round(out.loss.item(), 4)
-1.1294

The second ratio is 1.1, so γ = 1/2 makes f √1.1 and 1.1: −(1.0488 + 1.1·1.1)/2 = −1.1294.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="fipo",
    paper="arXiv 2603.19835",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="normalized",
    aggregation="token_mean",
    statistic="fipo",
    statistic_coef=("half_life", "future_low", "future_high"),
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.28,
        "half_life": 32.0,
        "future_low": 0.0,
        "future_high": 0.2,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
    },
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "DAPO, on which arXiv 2603.19835 builds",
        "clip_high": "DAPO, on which arXiv 2603.19835 builds",
        "half_life": "ms-swift's fipo_decay_rate",
        "future_low": "ms-swift's fipo_clip_high_only",
        "future_high": "ms-swift's fipo_clip_range",
        "kl_coef": "DAPO, on which arXiv 2603.19835 builds",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here, as for dapo; with one update every factor is 1",
    },
    sampling="dynamic",
    reward_terms=("overlong",),
)
