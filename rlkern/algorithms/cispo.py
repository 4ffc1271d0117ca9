# SPDX-License-Identifier: Apache-2.0
"""CISPO: REINFORCE with clipped importance weights, so that no token loses its gradient.

    ℓ_t = −sg(clip(r_t, 1 − clip_low, 1 + clip_high))·A·log π(o_t)
    A   = (R − mean) / (std + eps) of the group

Paper: arXiv 2506.13585, eq. 4; the clipped weight eq. 5. The loss is the mean over the tokens of
the batch. clip_low = 1 means no lower bound, because no ratio is below 0. Other libraries use other
names: epsilon_high is the cap itself, 1 + clip_high, in TRL, and the width in verl, slime and NeMo.
CISPOLoss of TorchRL 0.14 differentiates the clamp and so drops the gradients that CISPO keeps.

>>> import torch, rlkern
>>> logprob = torch.log(torch.tensor([[0.8]])).requires_grad_()
>>> old, mask, advantage = torch.log(torch.tensor([[0.1]])), logprob < 0, torch.tensor([1.0])
>>> out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old, algorithm="cispo")
>>> out.loss.backward()
>>> round(out.loss.item(), 4), logprob.grad.item()
(1.1157, -5.0)

The ratio 8 becomes the weight 5: the loss is −5·log 0.8, its gradient −5.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="cispo",
    paper="arXiv 2506.13585, eq. 4",
    gate="cispo",
    gate_coef=("clip_low", "clip_high"),
    advantage="normalized",
    aggregation="token_mean",
    defaults={"clip_low": 1.0, "clip_high": 4.0, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "no lower bound, as in the paper's experiments",
        "clip_high": "weights up to 5, as ScaleRL (arXiv 2510.13786) and TRL; the paper names none",
        "kl_coef": "the paper trains without a KL",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "verl's recipe for cispo",
    },
)
