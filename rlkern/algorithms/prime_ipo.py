# SPDX-License-Identifier: Apache-2.0
"""prime-rl's IPO: a token counts while its probability moved little, whatever its advantage.

    ℓ_t = −r_t·A·[−clip_low ≤ p − p_old ≤ clip_high] + drift_coef·(log r_t)²
    p = π(o_t), r_t = p / p_old

Paper: arXiv 2602.02276 (Kimi K2.5) has the second term, the drift. The mask is prime-rl's
(`type = "ipo"`); DPPO (arXiv 2602.04879) has it on the side to which A pushes alone. It has nothing
to do with the preference loss `ipo`. prime-rl's old policy is the sampler, so pass its
log-probabilities as old_logprob, and the drift also pulls the tokens that the mask drops. prime-rl
has one threshold for both sides; its documentation of later versions names 0.3. A is the reward
minus the group mean. The loss is the mean over the tokens of the batch.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5, 0.05]])), torch.log(torch.tensor([[0.3, 0.01]]))
>>> mask, advantage = torch.tensor([[True, True]]), torch.tensor([1.0])
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, drift_coef=0.0, algorithm="prime_ipo"
... )
>>> round(out.loss.item(), 4)
-2.5

The first token moved by 0.2 and is held; the second moved by 0.04 at ratio 5: −5 / 2.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="prime_ipo",
    paper="arXiv 2602.02276",
    gate="prime_ipo",
    gate_coef=("clip_low", "clip_high", "drift_coef"),
    advantage="centered",
    aggregation="token_mean",
    defaults={
        "clip_low": 0.1,
        "clip_high": 0.1,
        "drift_coef": 1e-3,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
    },
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "prime-rl's ipo_threshold",
        "clip_high": "prime-rl's ipo_threshold",
        "drift_coef": "prime-rl's kl_tau",
        "kl_coef": "the drift takes its place",
        "entropy_coef": "prime-rl has none",
        "batch.minibatches": "chosen here: with one update the ratio is 1, and nothing is held",
    },
)
