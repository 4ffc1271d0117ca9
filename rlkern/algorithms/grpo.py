# SPDX-License-Identifier: Apache-2.0
"""GRPO: the clipped surrogate over group-normalised rewards, with a KL to a reference in the loss.

    ℓ_t = −min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A) + kl_coef·KL(π ‖ π_ref)
    A   = (R − mean of the group) / (std of the group + eps)

Paper: arXiv 2402.03300, eq. 3; KL by the k3 estimator, eq. 4. The loss is the mean over
sequences of their token means. kl_coef is 0 here, as in TRL; the paper has 0.04. The std has ddof 1
everywhere except in RL-Kernel; eps is 1e-4 in TRL and here, 1e-6 in verl and NeMo. By default verl
averages over tokens and bounds the loss as dual_clip_ppo does.

>>> import torch, rlkern
>>> logits, token = torch.zeros(2, 2, 2), torch.tensor([[0, 0], [1, 0]])
>>> advantage = rlkern.group_advantage(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), eps=0.0)
>>> [round(a, 4) for a in advantage.tolist()]
[0.7071, -0.7071]
>>> mask = torch.tensor([[True, False], [True, True]])
>>> old = torch.log(torch.tensor([[0.25, 0.5], [0.5, 0.5]]))
>>> ref = torch.log(torch.full((2, 2), 0.25))
>>> out = rlkern.policy_loss(
...     logits, token, advantage, mask, old_logprob=old, ref_logprob=ref, kl_coef=0.1,
...     algorithm="grpo",
... )
>>> round(out.loss.item(), 4)
-0.0514

The first answer's only ratio is 2, clipped at 1.2; the second answer's ratios are 1. Under π_ref
every token is half as likely: −(1.2·0.7071 − 0.7071)/2 + 0.1·(1/2 − log(1/2) − 1) = −0.0514.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="grpo",
    paper="arXiv 2402.03300, eq. 3",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="normalized",
    aggregation="sequence_token_mean",
    kl_estimator="k3",
    defaults={"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0},
    sources={
        "clip_low": "arXiv 1707.06347, §3",
        "clip_high": "arXiv 1707.06347, §3",
        "kl_coef": "TRL; the paper's 0.04 (§4.2) needs a reference model",
        "entropy_coef": "the paper has none",
    },
)
