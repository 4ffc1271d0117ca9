# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the KL estimators of one sampled token, d = log π − log π_ref.

They estimate KL(π‖π_ref) from a token that π drew; importance_k1 and importance_k3 from one that
π_old drew. For a token that another policy μ drew, swap the roles: k3(log μ, log π) estimates
KL(μ‖π).

Which of them are unbiased in value is not which have the right gradient: on policy only k2, the
straight-through and the importance-weighted forms do. No estimator clamps d: kl_term
clamps the value. verl clamps of k3 alone d to ±20, then the value to ±10; OpenRLHF the value of
each estimator to ±10; TRL neither. With kl_max = 10 k3 is verl's low_var_kl, since it is beyond 10
wherever d is beyond ±20.
Twins: csrc/math/kl.h and kernels/triton/_kl.py; a test holds the three together.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]


def k1(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns d: unbiased and of either sign. Its expected gradient is 0."""
    return logprob - ref_logprob


def k2(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns d²/2: biased, with the gradient of the KL divergence on policy."""
    return 0.5 * (logprob - ref_logprob).square()


def k3(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns exp(−d) − 1 + d, unbiased and never negative. Paper: arXiv 2402.03300, eq. 4."""
    difference = logprob - ref_logprob
    return torch.expm1(-difference) + difference


def absolute(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns |d| (verl's abs)."""
    return (logprob - ref_logprob).abs()


def _with_gradient_of_k2(value: Tensor, logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    gradient = k2(logprob, ref_logprob, logprob)
    return value.detach() + (gradient - gradient.detach())  # 0: no digit of the value is lost


def k1_straight_through(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns the value of k1 with the gradient of k2 (verl's k1+)."""
    return _with_gradient_of_k2(k1(logprob, ref_logprob, log_ratio), logprob, ref_logprob)


def k3_straight_through(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns the value of k3 with the gradient of k2 (verl's k3+, low_var_kl+)."""
    return _with_gradient_of_k2(k3(logprob, ref_logprob, log_ratio), logprob, ref_logprob)


class _Sloped(torch.autograd.Function):
    """A value with its derivatives in d and in log_ratio as they are given.

    Autograd would add them up from factors that overflow, and make NaN of ∞ − ∞ and 0·∞.
    """

    @staticmethod
    def forward(ctx, value, slope, ratio_slope, d, log_ratio):
        ctx.save_for_backward(slope, ratio_slope)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # An upstream gradient of 0 drops what is infinite.
        slopes = (torch.where(grad == 0, 0.0, grad * x) for x in ctx.saved_tensors)
        return None, None, None, *slopes


def _ratio_times_k3(d: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Returns r·k3 and its slope while r is a constant."""
    # Far below the reference r and exp(−d) are multiplied as one power: r may be 0 and k3 infinite.
    far = d < -1
    below, near = torch.where(far, d, -1.0), torch.where(far, 0.0, d)
    power, ratio, decay = (log_ratio - d).exp(), log_ratio.exp(), torch.expm1(-near)
    value = torch.where(far, power * (1 - below.exp() * (1 - below)), ratio * (decay + near))
    return value, torch.where(far, power * torch.expm1(below), ratio * -decay)


def importance_k1(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns r·d with r = π/π_old of the token, differentiable in both (open-instruct)."""
    d = logprob - ref_logprob
    with torch.no_grad():
        ratio = log_ratio.exp()
        value, slope = ratio * d, ratio * (d + 1)
    return _Sloped.apply(value, torch.zeros_like(d), slope, d, log_ratio)


def importance_k3(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns r·k3 with r = π/π_old of the token, differentiable in both: unbiased off policy.

    Paper: DeepSeek-V3.2, arXiv 2512.02556. On policy it is k3 with its score-function term. The
    slope in log π, r·d, is that of both factors together.
    """
    d = logprob - ref_logprob
    with torch.no_grad():
        value, _ = _ratio_times_k3(d, log_ratio)
        slope = log_ratio.exp() * d
    return _Sloped.apply(value, torch.zeros_like(d), slope, d, log_ratio)


def level_k3(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns r·k3 with r the ratio that the gate sees, differentiable in both.

    TRL's use_bias_correction_kl: at the level of sequences all tokens of an answer share r. At
    level token it is importance_k3 with the clamped ratio.
    """
    d = logprob - ref_logprob
    with torch.no_grad():
        value, slope = _ratio_times_k3(d, log_ratio)
    return _Sloped.apply(value, slope, value, d, log_ratio)


# The position in this table is the number the native kernels know the formula by.
KL_ESTIMATORS: dict[str, Estimator] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "abs": absolute,
    "k1+": k1_straight_through,
    "k3+": k3_straight_through,
    "importance_k1": importance_k1,
    "importance_k3": importance_k3,
    "level_k3": level_k3,
}
KL_INDEX = {name: i for i, name in enumerate(KL_ESTIMATORS)}
STRAIGHT_THROUGH = ("k1+", "k3+")
# Weighted with the ratio that the gate sees, not with the token's own.
OF_LEVEL = ("level_k3",)


def kl_term(
    name: str, bound: float, logprob: Tensor, ref_logprob: Tensor, own: Tensor, seen: Tensor
) -> Tensor:
    """Returns an estimator within ±bound; beyond it a constant, on it itself with its gradient.

    own is the token's log ratio, seen the one that its gate sees.
    A straight-through estimator keeps its gradient beyond the bound, as in verl: that is k2's, and
    does not belong to the value.
    """
    estimator, log_ratio = KL_ESTIMATORS[name], seen if name in OF_LEVEL else own
    if bound == math.inf:
        return estimator(logprob, ref_logprob, log_ratio)
    value = estimator(logprob, ref_logprob, log_ratio).detach()
    beyond, held = value.abs() > bound, value.clamp(-bound, bound)
    if name in STRAIGHT_THROUGH:
        held = _with_gradient_of_k2(held, logprob, ref_logprob)
    # The inputs are held too: where exp overflows, a derivative of 0·inf would be NaN.
    free = (torch.where(beyond, x.detach(), x) for x in (logprob, ref_logprob, log_ratio))
    return torch.where(beyond, held, estimator(*free))
