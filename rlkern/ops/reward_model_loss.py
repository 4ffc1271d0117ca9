# SPDX-License-Identifier: Apache-2.0
"""The loss of a reward model over pairs of answers."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlkern.ops._loss_output import LossOutput
from rlkern.ops._preference import Rows, coefficients, pair_metrics, weighted_sum


def reward_model_loss(
    chosen_score: Tensor,
    rejected_score: Tensor,
    *,
    margin: Tensor | None = None,
    center_coef: float = 0.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> LossOutput:
    """Returns the Bradley–Terry loss Σ weight·ℓ of a reward model's scores of pairs, and metrics.

        ℓ = −log σ(r_chosen − r_rejected − margin) + center_coef·(r_chosen + r_rejected)²

    Paper: arXiv 2203.02155, eq. 1; the margin is that of arXiv 2307.09288, eq. 2, the centring that
    of arXiv 2312.09244 (TRL's center_rewards_coefficient, recommended 0.01).

    Arguments
        chosen_score, rejected_score  (B,) float
        margin       (B,) float, by how much the chosen answer should lead
        center_coef  weight of the second term, which pins the mean that pairs leave free
        mask         (B,) bool, True counts; all by default
        weight       (B,) weight of each pair, by default 1 / (number of counted pairs)
    Returns
        LossOutput(loss, metrics): a float32 scalar (float64 for float64), and a vector that
        preference_metrics_dict reads; there are no log-probabilities, so logps/* are NaN
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        to chosen_score and rejected_score

    >>> chosen, rejected = torch.tensor([2.0]), torch.tensor([1.0])
    >>> round(reward_model_loss(chosen, rejected, center_coef=0.01).loss.item(), 4)  # 0.3133 + 0.09
    0.4033
    """
    op = "reward_model_loss"
    c = coefficients(op, {"center_coef": center_coef}, ())
    rows = Rows.of(op, "chosen_score", chosen_score, mask)
    better = rows.select("chosen_score", chosen_score, 0.0)
    worse = rows.select("rejected_score", rejected_score, 0.0)
    lead = better - worse
    if margin is not None:
        lead = lead - rows.select("margin", margin.detach(), 0.0)
    loss = c["center_coef"] * (better + worse).square() - logsigmoid(lead)
    absent = torch.full_like(better, torch.nan).detach()
    metrics = pair_metrics(rows, (better, worse), (absent,) * 2)
    return LossOutput(weighted_sum(rows.weights(weight), loss), metrics)
