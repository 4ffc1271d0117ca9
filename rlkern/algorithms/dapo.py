# SPDX-License-Identifier: Apache-2.0
"""DAPO: GRPO with a higher upper clip, averaged over tokens, on groups whose rewards differ.

    ℓ_t = −min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A)
    A   = (R − mean of the group) / (std of the group + eps)        0 < number of right answers < G

Paper: arXiv 2503.14476, eq. 8; clip-higher eq. 10, dynamic sampling eq. 11, soft overlong
punishment eq. 13, no KL §2.3. The loss is the mean over the tokens of the batch, eq. 12. The whole
algorithm is the loss, the sampling and the punishment together (rlkern.sampling: mixed_groups,
overlong_penalty, overlong_filter); `dapo` in TRL is only the loss.

>>> import torch, rlkern
>>> reward, group = torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
>>> rlkern.sampling.mixed_groups(reward, group).tolist()
[True, True, False, False]
>>> logprob = torch.log(torch.full((2, 3), 0.4))
>>> old = torch.log(torch.tensor([[0.2, 0.4, 0.4], [0.8, 0.4, 0.4]]))
>>> mask = torch.tensor([[True, False, False], [True, True, True]])
>>> advantage = torch.tensor([1.0, -1.0])
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="dapo")
>>> round(out.loss.item(), 4)
0.38

The good answer's ratio 2 is clipped at 1.28. The bad answer's first ratio, 1/2, is clipped at 0.8,
and its others are 1. The mean over all four tokens is (−1.28 + 0.8 + 1 + 1)/4 = 0.38.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="dapo",
    paper="arXiv 2503.14476, eq. 8",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="normalized",
    aggregation="token_mean",
    defaults={"clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "arXiv 2503.14476, §4.1",
        "clip_high": "arXiv 2503.14476, §4.1",
        "kl_coef": "arXiv 2503.14476, §2.3 removes it",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: the paper has 16, of 32 prompts each",
    },
    sampling="dynamic",
    reward_terms=("overlong",),
)
