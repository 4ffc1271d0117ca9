# SPDX-License-Identifier: Apache-2.0
"""DPPO (Binary-TV): the gate holds a token if its probability moved far, whatever its ratio.

    ℓ_t = −A·sg(min(r_t, clip_cap))·log π(o_t)    while the probability moved little, else 0
    p − p_old ≤ clip_high if A > 0, else p − p_old ≥ −clip_low        p = π(o_t), r_t = p / p_old

Paper: arXiv 2602.04879; the cap §5.4. |p − p_old| is the total variation between the policies if
all other tokens count as one. A rare token may become five times as likely, which PPO forbids; a
token of probability 0.99 may not fall to 0.8, which PPO allows. A is the reward minus the group
mean, §4.1. The loss is the mean over answers of token sums, eq. 12; a constant that divides the
sums (aggregate.token_weight) only scales the learning rate. verl (`dppo_tv`) and SkyRL have this
gate. prime-rl had it until its pull request 3418; its default is now its own IPO (prime_ipo), whose
mask does not look at the sign of A.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5, 0.05]])), torch.log(torch.tensor([[0.3, 0.01]]))
>>> mask, advantage = torch.tensor([[True, True]]), torch.tensor([1.0])
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="dppo")
>>> round(out.loss.item(), 4)
14.9787

The first token moved by 0.2 and is held; the second moved by 0.04 at ratio 5: −5·log 0.05.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="dppo",
    paper="arXiv 2602.04879",
    gate="dppo_tv",
    gate_coef=("clip_low", "clip_high", "clip_cap"),
    advantage="centered",
    aggregation="sequence_token_sum",
    defaults={
        "clip_low": 0.15,
        "clip_high": 0.15,
        "clip_cap": 20.0,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
    },
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "verl's recipe for dppo_tv",
        "clip_high": "verl's recipe for dppo_tv",
        "clip_cap": "verl's fallback (its config has 3, its recipe 10 000); the paper, §5.4: large",
        "kl_coef": "the bound on the divergence is in the gate",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: verl's recipe has 8, of 32 prompts each",
    },
)
