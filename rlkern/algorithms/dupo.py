# SPDX-License-Identifier: Apache-2.0
"""DUPO: DAPO's loss, where copies of useful groups replace groups that teach nothing.

    ℓ_t = −min(r_t·A, clip(r_t, 1 − clip_low, 1 + clip_high)·A)
    A   = (R − mean of the group) / (std of the group + eps)

Paper: arXiv 2507.02592 (WebSailor). If all rewards of a group agree, DAPO samples new prompts. DUPO
instead duplicates other groups of the batch, drawn at random, and samples nothing. The loss is the
mean over the tokens of the refilled batch. A copy is a row (rlkern.sampling.refill_index) or a
weight (refill_multiplicity), which is the same for a single optimizer step. The paper leaves two
cases open: no useful group, and more places than groups. Those functions say what happens then. The
paper also drops, before training, the prompts that the model always answers right.

>>> import torch, rlkern
>>> reward, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
>>> generator = torch.Generator().manual_seed(0)
>>> copies = rlkern.sampling.refill_multiplicity(reward, group, generator=generator)
>>> copies.tolist()
[2, 2, 0, 0]
>>> mask = torch.tensor([[True], [True], [True], [True]])
>>> logprob, old = torch.log(torch.full((4, 1), 0.4)), torch.log(torch.full((4, 1), 0.2))
>>> weight = rlkern.sampling.multiplicity_weight(mask, copies)
>>> advantage = torch.tensor([1.0, -1.0, 0.0, 0.0])
>>> out = rlkern.token_objective(
...     logprob, advantage, mask, old_logprob=old, weight=weight, algorithm="dupo"
... )
>>> round(out.loss.item(), 4)
0.36

Two copies of two tokens at ratio 2, clipped at 1.28 where A > 0: 2·(−1.28 + 2)/4 = 0.36.
"""

from rlkern.algorithms.registry import Algorithm

ALGORITHM = Algorithm(
    name="dupo",
    paper="arXiv 2507.02592",
    gate="ppo_clip",
    gate_coef=("clip_low", "clip_high"),
    advantage="normalized",
    aggregation="token_mean",
    defaults={"clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.0, "entropy_coef": 0.0},
    settings={"batch.minibatches": 4},
    sources={
        "clip_low": "DAPO, arXiv 2503.14476, §4.1, whose clip the paper takes over",
        "clip_high": "DAPO, arXiv 2503.14476, §4.1, whose clip the paper takes over",
        "kl_coef": "the paper has none",
        "entropy_coef": "the paper has none",
        "batch.minibatches": "as chosen for DAPO, which the paper builds on",
    },
    sampling="duplicate",
)
