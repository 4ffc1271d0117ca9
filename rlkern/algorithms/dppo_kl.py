# SPDX-License-Identifier: Apache-2.0
"""DPPO (Binary-KL): as dppo, with the Kullback–Leibler divergence as the measure of movement.

    ℓ_t = −A·sg(min(r_t, clip_cap))·log π(o_t)    unless D > clip_high and p > p_old where A > 0,
                                                  or D > clip_low and p < p_old where A ≤ 0; then 0
    D   = p_old·log(p_old / p) + (1 − p_old)·log((1 − p_old) / (1 − p))        p = π(o_t)

Paper: arXiv 2602.04879; the cap §5.4. D is the divergence of the policies if all other tokens count
as one. A is the same as in dppo, and again the loss is the mean over answers of token sums. The
widths bound D, as in verl (`dppo_kl`); verl's 1e-8 inside the second logarithm is here too.

>>> import torch, rlkern
>>> logprob, old = torch.log(torch.tensor([[0.5, 0.05]])), torch.log(torch.tensor([[0.3, 0.01]]))
>>> mask, advantage = torch.tensor([[True, True]]), torch.tensor([1.0])
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="dppo_kl")
>>> round(out.loss.item(), 4)
14.9787

D is 0.0823 for the first token, which is held, and 0.0247 for the second: −5·log 0.05.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="dppo_kl",
    paper="arXiv 2602.04879",
    gate="dppo_kl",
    gate_coef=("clip_low", "clip_high", "clip_cap"),
    advantage="centered",
    aggregation="sequence_token_sum",
    defaults={
        "clip_low": 0.05,
        "clip_high": 0.05,
        "clip_cap": 20.0,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
    },
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "verl's recipe for dppo_kl",
        "clip_high": "verl's recipe for dppo_kl",
        "clip_cap": "verl's fallback (its config has 3, its recipe 10 000); the paper, §5.4: large",
        "kl_coef": "the bound on the divergence is in the gate",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "chosen here: verl's recipe has 8, of 32 prompts each",
    },
)
