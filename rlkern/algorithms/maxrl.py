# SPDX-License-Identifier: Apache-2.0
"""MaxRL: advantages divided by the group's mean reward, so that rare successes count most.

    ℓ_t = −A·log π(o_t)        A = (R − mean of the group) / mean of the group, 0 if the mean is ≤ 0

Paper: arXiv 2602.02710. For rewards of 0 and 1 the expected update follows the gradient of
log(probability of a right answer) up to the (G − 1)-th term of its series; the mean reward gives
only the first term. Rewards must not be negative. The loss is the mean over answers of token sums,
because log π of an answer is a sum; a constant that divides the sums (aggregate.token_weight) only
scales the learning rate. prime-rl and SkyRL use this A in other losses.

>>> import torch, rlkern
>>> reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 0, 0])
>>> advantage = rlkern.group_advantage(reward, group, kind="max_rl")
>>> advantage.tolist()
[3.0, -1.0, -1.0, -1.0]
>>> logprob = torch.log(torch.tensor([[0.25], [0.5], [0.5], [0.5]]))
>>> out = rlkern.token_objective(logprob, advantage, logprob < 0, algorithm="maxrl")
>>> round(out.loss.item(), 4)
0.5199

(3·log 4 − 3·log 2)/4 = 0.5199.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="maxrl",
    paper="arXiv 2602.02710",
    gate="reinforce",
    advantage="max_rl",
    aggregation="sequence_token_sum",
    kl_estimator="k2",
    defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    sources={
        "kl_coef": "the paper's estimator has none",
        "entropy_coef": "the paper's estimator has none",
    },
)
