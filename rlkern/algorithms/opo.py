# SPDX-License-Identifier: Apache-2.0
"""OPO: the policy gradient, exactly on policy, with the baseline of least variance.

    ℓ_t = −A·log π(o_t)        A = R − Σ |o|·R / Σ |o| over the group

Paper: arXiv 2505.23585. The optimal baseline weighs rewards by the squared norm of the gradient of
log π(o), and the paper assumes that this norm grows like the answer's length. Each batch serves one
step, so there is no ratio, no clip, no KL and no entropy bonus. The loss is the mean over the
tokens of the batch, as in verl. verl gives a group of one its raw reward; here it gets 0.

>>> import torch, rlkern
>>> reward, group = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
>>> length = torch.tensor([3, 1])
>>> advantage = rlkern.group_advantage(reward, group, kind="length_weighted", length=length)
>>> advantage.tolist()
[0.25, -0.75]
>>> mask = torch.tensor([[True, True, True], [True, False, False]])
>>> logprob = torch.log(torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.5, 0.5]]))
>>> out = rlkern.token_objective(logprob, advantage, mask, algorithm="opo")
>>> round(out.loss.item(), 4)
-0.13

Three tokens give 0.25·log 2 each and one gives −0.75·log 4: (0.75 − 1.5)·log 2 / 4 = −0.13.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="opo",
    paper="arXiv 2505.23585",
    gate="reinforce",
    advantage="length_weighted",
    aggregation="token_mean",
    kl_estimator="k2",
    defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    sources={"kl_coef": "the paper has none", "entropy_coef": "the paper has none"},
)
