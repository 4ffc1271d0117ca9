# SPDX-License-Identifier: Apache-2.0
"""ReMax: REINFORCE with the reward of the greedy answer as baseline.

    ℓ_t = −A·log π(o_t)        A = R − R of the greedy answer to the same prompt

Paper: arXiv 2310.10505, with the KL to the reference in the reward. It costs one greedy answer per
prompt. The loss is the mean over answers of token sums, because log π of an answer is a sum; a
constant that divides the sums (aggregate.token_weight) only scales the learning rate. verl uses A
in PPO's clip and averages over tokens.

>>> import torch, rlkern
>>> advantage = rlkern.advantage.remax(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
>>> advantage.tolist()
[0.5, -0.5]
>>> mask = torch.tensor([[True, True], [True, False]])
>>> logprob = torch.log(torch.full((2, 2), 0.5))
>>> out = rlkern.token_objective(logprob, advantage, mask, algorithm="remax")
>>> round(out.loss.item(), 4)
0.1733

Answers of two tokens and one, all of probability 1/2: (2 − 1)·0.5·log 2 / 2 = 0.1733.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="remax",
    paper="arXiv 2310.10505",
    gate="reinforce",
    advantage="remax",
    aggregation="sequence_token_sum",
    kl_estimator="k2",
    defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"reward.kl_coef": 0.001},
    sources={
        "kl_coef": "the paper has the KL in the reward",
        "entropy_coef": "the paper has none",
        "reward.kl_coef": "verl's recipe for remax",
    },
    needs=("greedy",),
    reward_terms=("kl",),
)
