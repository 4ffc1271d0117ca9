# SPDX-License-Identifier: Apache-2.0
"""Eager definition of the KL estimators of one sampled token, d = log π − log π_ref.

They estimate KL(π‖π_ref) from a token that π drew; importance_k1 and importance_k3 from one that
π_old drew. For a token that another policy μ drew, swap the roles: k3(log μ, log π) estimates
KL(μ‖π).

Which of them are unbiased in value is not which have the right gradient: on policy only k2, the
straight-through and the importance-weighted forms do. No estimator clamps d (verl, OpenRLHF and
NeMo clamp it to ±20 or ±10; TRL does not).
Twins: csrc/math/kl.h and kernels/triton/_kl.py; a test holds the three together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

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
    return value.detach() + (gradient - gradient.detach())


def k1_straight_through(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns the value of k1 with the gradient of k2 (verl's k1+)."""
    return _with_gradient_of_k2(k1(logprob, ref_logprob, log_ratio), logprob, ref_logprob)


def k3_straight_through(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns the value of k3 with the gradient of k2 (verl's k3+, low_var_kl+)."""
    return _with_gradient_of_k2(k3(logprob, ref_logprob, log_ratio), logprob, ref_logprob)


def importance_k1(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns r·d with r = π/π_old of the token, differentiable in both (open-instruct)."""
    return log_ratio.exp() * k1(logprob, ref_logprob, log_ratio)


def importance_k3(logprob: Tensor, ref_logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns r·k3 with r = π/π_old of the token, differentiable in both: unbiased off policy.

    Paper: DeepSeek-V3.2, arXiv 2512.02556. On policy it is k3 with its score-function term.
    """
    difference = logprob - ref_logprob
    far = difference.detach() < -1
    near = torch.where(far, 0.0, difference)
    ratio = log_ratio.exp()
    # There r·exp(−d) = π_ref/π_old is one power, with no gradient in log π: r may be 0 and exp(−d)
    # infinite.
    power = (log_ratio - difference).detach().exp()
    return torch.where(far, power - ratio * (1 - difference), ratio * (torch.expm1(-near) + near))


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
}
KL_INDEX = {name: i for i, name in enumerate(KL_ESTIMATORS)}
