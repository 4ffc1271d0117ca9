# SPDX-License-Identifier: Apache-2.0
"""The loss of answers that are judged one by one, desirable or not."""

import torch
from torch import Tensor

from rlkern.backends.eager.preference_loss import kto
from rlkern.ops import _check as check
from rlkern.ops._loss_output import LossOutput
from rlkern.ops._preference import Rows, coefficients, preference_metrics, weighted_sum


def kto_loss(
    logprob: Tensor,
    ref_logprob: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float = 0.1,
    desirable_coef: float = 1.0,
    undesirable_coef: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> LossOutput:
    """Returns the KTO loss Σ weight·ℓ of answers that are desirable or not, and metrics.

        ℓ = desirable_coef·(1 − σ(β·(h − kl)))    or    undesirable_coef·(1 − σ(β·(kl − h)))

    with h = log π − log π_ref. Paper: arXiv 2402.01306, eqs. 7 and 8.

    Arguments
        logprob, ref_logprob  (B,) float, of the answers, summed over tokens
        desirable             (B,) bool
        kl                    scalar tensor from mismatched_kl; a constant
        beta                  β; 0.1
        desirable_coef, undesirable_coef  λ_D and λ_U, to balance the two kinds of answer
        mask                  (B,) bool, True counts; all by default
        weight                (B,) weight of each answer, by default 1 / (number of counted answers)
    Returns
        LossOutput(loss, metrics): a float32 scalar (float64 for float64), and a vector that
        preference_metrics_dict reads, desirable answers as chosen. An answer is judged rightly if
        h > kl says what desirable says
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        to logprob

    >>> logprob, ref = torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -2.0])
    >>> kl = torch.tensor(1.0)
    >>> kto_loss(logprob, ref, torch.tensor([True, False]), kl, beta=1.0).loss.item()
    0.5
    """
    op = "kto_loss"
    named = {"desirable_coef": desirable_coef, "undesirable_coef": undesirable_coef}
    c = coefficients(op, {"beta": beta, **named})
    rows = Rows.of(op, "logprob", logprob, mask)
    check.like(op, "desirable", desirable, logprob.shape, logprob, (torch.bool,))
    check.tensor(op, "kl", kl, check.FLOATS)
    if kl.numel() != 1:
        raise ValueError(f"{op}: kl must be one number, got {check.describe(kl)}")
    log_pi, log_ref = rows.logprobs({"logprob": logprob, "ref_logprob": ref_logprob.detach()})
    h = log_pi - log_ref
    z = kl.detach().reshape(()).to(h.dtype)
    loss = weighted_sum(rows.weights(weight), kto(h, desirable, z, c))
    reward = c["beta"] * h
    counted = rows.counted()
    masks = (counted & desirable, counted & ~desirable, counted)
    right = (h > z) == desirable
    return LossOutput(loss, preference_metrics(masks, (reward,) * 2, right, (log_pi,) * 2))
