# SPDX-License-Identifier: Apache-2.0
"""Eager definition of every gate: the loss of a token, given its log-prob, ratio and advantage.

A gate is a function of log π, of the log ratio (of the token or of its sequence: see levels.py), of
the advantage A and of up to four coefficients. It returns the loss, differentiable in the first
two, and where it clips: the ratio too small, the ratio too large. sg(·) stops the gradient.
exp overflows (in float32 from a log ratio of 88.7 on), and a branch that a clip drops must not: its
gradient 0 times an infinite slope is NaN. So the log ratio is replaced before exp sees it.
Twins: csrc/math/gates.h and kernels/triton/_gates.py; a test holds the three together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends.eager.sigmoid import sigmoid


class Gated(NamedTuple):
    """The loss of each token, and whether a clip holds it."""

    loss: Tensor
    clip_low: Tensor
    clip_high: Tensor


Gate = Callable[..., Gated]


def _unclipped(loss: Tensor) -> Gated:
    nowhere = torch.zeros_like(loss, dtype=torch.bool)
    return Gated(loss, nowhere, nowhere)


def _clip_metrics(ratio: Tensor, advantage: Tensor, low: float, high: float):
    """Returns where the clip of a surrogate removes the gradient, as TRL and verl count it."""
    return (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)


def _surrogate(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """Returns r·A, and 0 for A = 0 also where r overflows."""
    nothing = (advantage == 0) & log_ratio.detach().exp().isinf()
    return torch.where(nothing, 0.0, log_ratio).exp() * advantage


def _change(logprob: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns p − p_old, a constant."""
    return logprob.detach().exp() - (logprob - log_ratio).detach().exp()


def reinforce(logprob: Tensor, log_ratio: Tensor, advantage: Tensor, *unused: float) -> Gated:
    """Returns −A·log π. Paper: Williams 1992, doi 10.1007/BF00992696, eq. 11."""
    return _unclipped(-advantage * logprob)


def importance(logprob: Tensor, log_ratio: Tensor, advantage: Tensor, *unused: float) -> Gated:
    """Returns −r·A with r = exp(log_ratio), unclipped. Paper: arXiv 1707.06347, eq. 6.

    With the level clipped_sequence it is GMPO: arXiv 2507.20673.
    """
    return _unclipped(-_surrogate(log_ratio, advantage))


def ppo_clip(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor, low: float, high: float, *unused: float
) -> Gated:
    """Returns −min(r·A, clip(r, 1 − low, 1 + high)·A).

    Paper: arXiv 1707.06347, eq. 7; two widths (clip-higher) as in arXiv 2503.14476, eq. 8.
    """
    ratio = log_ratio.detach().exp()
    bound = ratio.clamp(1 - low, 1 + high) * advantage
    held = bound < _surrogate(log_ratio.detach(), advantage)
    free = _surrogate(torch.where(held, 0.0, log_ratio), advantage)
    return Gated(-torch.where(held, bound, free), *_clip_metrics(ratio, advantage, low, high))


def dual_clip(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor,
    low: float, high: float, cap: float, *unused: float,
) -> Gated:  # fmt: skip
    """Returns ppo_clip's loss ℓ, but min(ℓ, −cap·A) where A < 0: a bound for huge ratios.

    Paper: arXiv 1912.09729 (cap 3). For cap > 1 + high the two-sided δ of INTELLECT-2
    (arXiv 2505.07291; cap = δ) has the same value and gradient.
    """
    value, clip_low, clip_high = ppo_clip(logprob, log_ratio.detach(), advantage, low, high)
    bound = -cap * advantage
    held = (advantage < 0) & (bound < value)
    loss = ppo_clip(logprob, torch.where(held, 0.0, log_ratio), advantage, low, high).loss
    return Gated(torch.where(held, bound, loss), clip_low, clip_high | held)


def cispo(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor, low: float, high: float, *unused: float
) -> Gated:
    """Returns −sg(clip(r, 1 − low, 1 + high))·A·log π: every token keeps a gradient.

    Paper: arXiv 2506.13585, eq. 4 and 5. TRL's epsilon_high is the cap itself, 1 + high here.
    """
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(1 - low, 1 + high)
    return Gated(-weight * advantage * logprob, ratio < 1 - low, ratio > 1 + high)


def sapo(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor,
    tau_positive: float, tau_negative: float, *unused: float,
) -> Gated:  # fmt: skip
    """Returns −A·(4/τ)·σ(τ·(r − 1)), τ by the sign of A (A = 0 counts as negative).

    Paper: arXiv 2511.20347. A smooth gate: it never clips.
    """
    positive = (advantage > 0).to(advantage.dtype)
    tau = tau_positive * positive + tau_negative * (1 - positive)
    flat = torch.sigmoid(tau * (1 - log_ratio.detach().exp())) == 0
    x = tau * (torch.where(flat, 0.0, log_ratio).exp() - 1)
    return _unclipped(-advantage * (4 / tau) * torch.where(flat, 1.0, sigmoid(x)))


def _dppo(logprob, log_ratio, advantage, cap, too_low, too_high) -> Gated:
    held = torch.where(advantage > 0, too_high, too_low)
    weight = torch.where(held, 0.0, log_ratio.detach().exp().clamp(max=cap))
    return Gated(-weight * advantage * logprob, too_low & (advantage <= 0),
                 too_high & (advantage > 0))  # fmt: skip


def dppo_tv(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor,
    low: float, high: float, cap: float, *unused: float,
) -> Gated:  # fmt: skip
    """Returns −A·sg(min(r, cap))·log π where the probability moved little, else 0.

    Kept are p − p_old ≤ high for A > 0 and p − p_old ≥ −low otherwise: a bound on total variation.
    It is that of two Bernoulli variables, this token or another: exact, whoever drew the token.
    Paper: arXiv 2602.04879 (Binary-TV). verl's cap is 3 unless its recipe's 10 000 is given.
    """
    change = _change(logprob, log_ratio)
    return _dppo(logprob, log_ratio, advantage, cap, change < -low, change > high)


def dppo_kl(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor,
    low: float, high: float, cap: float, *unused: float,
) -> Gated:  # fmt: skip
    """Returns dppo_tv's loss with the bound on KL(Bernoulli p_old ‖ Bernoulli p) in its direction.

    Of this token or another as two outcomes: exact, whoever drew the token.
    Paper: arXiv 2602.04879 (Binary-KL); the logarithm's 1e-8 is verl's.
    """
    old = (logprob - log_ratio).detach()
    p, p_old = logprob.detach().exp(), old.exp()
    rest = ((1 - p_old + 1e-8) / (1 - p + 1e-8)).log()
    divergence = p_old * -log_ratio.detach() + (1 - p_old) * rest
    too_low, too_high = (divergence > low) & (p < p_old), (divergence > high) & (p > p_old)
    return _dppo(logprob, log_ratio, advantage, cap, too_low, too_high)


def dro(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor, beta: float, *unused: float
) -> Gated:
    """Returns −(A·log π − (beta/2)·(log r)²): a quadratic pull instead of a clip.

    As verl's dro; the idea is that of arXiv 2405.19107.
    """
    return _unclipped(-(advantage * logprob - 0.5 * beta * log_ratio.square()))


def vespo(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor,
    k_positive: float, lambda_positive: float, k_negative: float, lambda_negative: float,
) -> Gated:  # fmt: skip
    """Returns −sg(φ(W))·A·log π with φ(W) = W^k·exp(λ·(1 − W)), k and λ by the sign of A.

    W = exp(log_ratio) is the product over the sequence (level product). A = 0 counts as positive.
    Paper: arXiv 2602.10693.
    """
    positive = (advantage >= 0).to(advantage.dtype)
    k = k_positive * positive + k_negative * (1 - positive)
    rate = lambda_positive * positive + lambda_negative * (1 - positive)
    log_w = log_ratio.detach()
    return _unclipped(-(k * log_w + rate * (1 - log_w.exp())).exp() * advantage * logprob)


def topr(logprob: Tensor, log_ratio: Tensor, advantage: Tensor, *unused: float) -> Gated:
    """Returns −A·log π for A > 0, else −A·sg(min(r, 1))·log π.

    Paper: arXiv 2503.14286; r is the product over the sequence (level product).
    """
    ratio = log_ratio.detach().exp()
    weight = torch.where(advantage > 0, 1.0, ratio.clamp(max=1.0))
    held = (advantage <= 0) & (ratio > 1)
    return Gated(-weight * advantage * logprob, torch.zeros_like(held), held)


def regression(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor, beta: float, *unused: float
) -> Gated:
    """Returns (beta·log_ratio − A)², regressing the optimal advantage.

    Paper: arXiv 2505.20686, at level product with old_logprob the reference's.
    """
    return _unclipped((beta * log_ratio - advantage).square())


def prime_ipo(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor,
    low: float, high: float, drift_coef: float, *unused: float,
) -> Gated:  # fmt: skip
    """Returns −r·A where −low ≤ p − p_old ≤ high, else 0; everywhere + drift_coef·(log r)².

    Whatever the sign of A, unlike dppo_tv. As prime-rl's ipo; the drift is that of Kimi K2.5,
    arXiv 2602.02276.
    """
    change = _change(logprob, log_ratio)
    is_low, is_high = change < -low, change > high
    held = is_low | is_high
    # Held before it is raised: the derivative of an infinite ratio would be 0·inf.
    ratio = torch.where(held, 0.0, log_ratio).exp()
    surrogate = torch.where(held, 0.0, -ratio * advantage)
    return Gated(surrogate + drift_coef * log_ratio.square(), is_low, is_high)


def cfpo(
    logprob: Tensor, log_ratio: Tensor, advantage: Tensor, width: float, *unused: float
) -> Gated:
    """Returns −(r·A − |A|/(2·width)·(r − 1)²), least at r = 1 ± width: a parabola for a clip.

    Paper: arXiv 2601.22801; the loss of SPO, arXiv 2401.16025.
    """
    nothing = (advantage == 0) & ~log_ratio.isnan()
    excess = torch.where(nothing, 0.0, log_ratio).exp() - 1
    sign = advantage.sign()
    # One product: where r overflows, its square less itself would be NaN.
    return _unclipped(advantage.abs() * (excess * (excess / (2 * width) - sign) - sign))


def dft(logprob: Tensor, log_ratio: Tensor, advantage: Tensor, *unused: float) -> Gated:
    """Returns −sg(p)·A·log π with p = π(o_t): a token counts as much as it is likely.

    Paper: arXiv 2508.05629, of right answers (A = 1).
    """
    return _unclipped(-logprob.detach().exp() * advantage * logprob)


# The position in this table is the number the native kernels know the formula by.
GATES: dict[str, Gate] = {
    "reinforce": reinforce,
    "importance": importance,
    "ppo_clip": ppo_clip,
    "dual_clip": dual_clip,
    "cispo": cispo,
    "sapo": sapo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "dro": dro,
    "vespo": vespo,
    "topr": topr,
    "regression": regression,
    "prime_ipo": prime_ipo,
    "cfpo": cfpo,
    "dft": dft,
}
# Their loss has a slope in the ratio also where the advantage is 0; any other is 0 there.
PULLS = ("dro", "regression", "prime_ipo")
GATE_INDEX = {name: i for i, name in enumerate(GATES)}
GATE_COEFFICIENTS = 4
# They take no ratio, or probabilities that the token's own ratio alone gives.
TOKEN_GATES = ("reinforce", "dppo_tv", "dppo_kl", "prime_ipo", "dft")
