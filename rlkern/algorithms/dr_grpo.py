# SPDX-License-Identifier: Apache-2.0
"""Dr. GRPO: GRPO without its two divisions, by the answer's length and by the group's deviation.

    ℓ_t = −min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A)        A = R − mean of the group

Paper: arXiv 2503.20783, §3.2. The loss is the mean over answers of token sums, divided by a
constant, so that each token counts the same in long and short answers. The constant is the longest
allowed answer in TRL and by default the padded width in verl. Here it is the argument of
aggregate.token_weight(constant=…), by default 1.

>>> import torch, rlkern
>>> reward, group = torch.tensor([3.0, 1.0]), torch.tensor([0, 0])
>>> advantage = rlkern.group_advantage(reward, group, kind="centered")
>>> advantage.tolist()
[1.0, -1.0]
>>> mask = torch.tensor([[True, False, False], [True, True, True]])
>>> logprob = torch.log(torch.full((2, 3), 0.5))
>>> rlkern.token_objective(logprob, advantage, mask, algorithm="dr_grpo").loss.item()
1.0

At ratio 1 the answers of 1 and 3 tokens give −1·1 and 1·3, on average 1; in GRPO they cancel.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="dr_grpo",
    paper="arXiv 2503.20783, §3.2",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="centered",
    aggregation="sequence_token_sum",
    defaults={"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0},
    sources={
        "clip_low": "arXiv 1707.06347, §3",
        "clip_high": "arXiv 1707.06347, §3",
        "kl_coef": "the authors' setting, in their repository",
        "entropy_coef": "the paper has none",
    },
)
