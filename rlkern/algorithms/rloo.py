# SPDX-License-Identifier: Apache-2.0
"""RLOO: the baseline is the mean reward of the other answers, the ratio is the whole answer's.

    ℓ_t = −min(S·A, clip(S, 1 − clip_low, 1 + clip_high)·A)        S = Π_t π(o_t) / π_old(o_t)
    A   = R − mean reward of the other answers to the prompt

Paper: arXiv 2402.14740, §3.2, with the KL to the reference in the reward. For the policy that
sampled the answers S = 1, and ℓ_t has the paper's gradient, −A·∇log π(answer). S and its clip come
from TRL and matter for the updates after the first. verl and OpenRLHF take only A and clip token by
token. The loss is the mean over answers: all tokens of an answer hold the same ℓ_t.

>>> import torch, rlkern
>>> reward, group = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0, 0, 0])
>>> rlkern.group_advantage(reward, group, kind="leave_one_out").tolist()
[0.75, -0.75, 0.0]
>>> logprob, old = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.5]]))
>>> mask, advantage = torch.tensor([[True, True]]), torch.tensor([0.75])
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="rloo")
>>> round(out.loss.item(), 4)
-0.9

The ratios 2 and 1 make S = 2, clipped at 1.2: −1.2·0.75 = −0.9.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="rloo",
    paper="arXiv 2402.14740, §3.2",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    level="product",
    advantage="leave_one_out",
    aggregation="sequence_token_mean",
    kl_estimator="k2",
    defaults={"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 2, "reward.kl_coef": 0.03},
    sources={
        "clip_low": "TRL; the paper has no clip",
        "clip_high": "TRL; the paper has no clip",
        "kl_coef": "the paper has the KL in the reward",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "appendix C of the paper, as in TRL's paper index",
        "reward.kl_coef": "appendix C of the paper, as in TRL's paper index; TRL has 0.05",
    },
    reward_terms=("kl",),
)
