# SPDX-License-Identifier: Apache-2.0
"""On-policy distillation: a teacher says of every token how much likelier it should be.

    ℓ_t = −r_t·A_t        A_t = log π_teacher(o_t) − log π_old(o_t)

Paper: arXiv 2306.13649 (GKD), reverse KL on the student's own answers; as a policy gradient of the
sampled tokens it is Thinking Machines' "On-Policy Distillation" (2025). The mean of A_t over
samples is −KL(π ‖ π_teacher), and each token answers for itself alone: nothing is summed over what
follows, as MiniLLM (arXiv 2306.08543) does. No reward is looked at. The loss is the mean over the
tokens of the batch. prime-rl adds its mask of moved probabilities; slime, verl and tinker can add
this advantage to one of a reward. TRL's DistillationTrainer sums over the vocabulary instead of
sampling.

>>> import torch, rlkern
>>> logprob = torch.log(torch.tensor([[0.5, 0.5]])).requires_grad_()
>>> teacher, mask = torch.log(torch.tensor([[0.25, 1.0]])), torch.tensor([[True, True]])
>>> out = rlkern.token_objective(
...     logprob, teacher - logprob.detach(), mask, algorithm="on_policy_distillation"
... )
>>> out.loss.backward()
>>> [round(g, 4) for g in logprob.grad[0].tolist()]
[0.3466, -0.3466]

The teacher finds the first token half as likely, the second twice: the gradient is ∓log 2 / 2.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="on_policy_distillation",
    paper="arXiv 2306.13649",
    gate="importance",
    advantage="teacher",
    aggregation="token_mean",
    defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    sources={
        "kl_coef": "the KL to the teacher is what the advantage holds",
        "entropy_coef": "Thinking Machines' recipe has none",
    },
    needs=("teacher",),
)
