# SPDX-License-Identifier: Apache-2.0
"""Every gate and its derivatives: the Triton home of rlkern/backends/eager/gates.py.

A gate takes log π, the log ratio its level makes, the advantage and four coefficients, and returns
(loss, ∂loss/∂log π, ∂loss/∂log ratio, clip holds low, clip holds high). It is passed to kernels as
a compile-time constant.
"""

import triton
import triton.language as tl

from rlkern.backends.triton._math import expm1


@triton.jit
def weighted_logprob(weight, logprob, advantage, low, high):
    """Returns the gate −w·A·log π of a constant weight w."""
    slope = -weight * advantage
    return slope * logprob, slope, tl.zeros_like(logprob), low, high


@triton.jit
def unclipped(loss, slope, ratio_slope):
    """Returns a gate that no clip holds."""
    nowhere = tl.zeros_like(loss) != 0
    return loss, slope, ratio_slope, nowhere, nowhere


@triton.jit
def surrogate(ratio, advantage):
    """Returns r·A, and 0 for A = 0 also where r has overflowed."""
    return tl.where((advantage == 0) & (ratio == float("inf")), 0.0, ratio * advantage)


@triton.jit
def reinforce(logprob, log_ratio, advantage, c0, c1, c2, c3):
    """Returns −A·log π."""
    return unclipped(-advantage * logprob, -advantage, tl.zeros_like(logprob))


@triton.jit
def importance(logprob, log_ratio, advantage, c0, c1, c2, c3):
    """Returns −r·A."""
    loss = -surrogate(tl.exp(log_ratio), advantage)
    return unclipped(loss, tl.zeros_like(logprob), loss)


@triton.jit
def ppo_clip(logprob, log_ratio, advantage, low, high, c2, c3):
    """Returns −min(r·A, clip(r, 1 − low, 1 + high)·A)."""
    ratio = tl.exp(log_ratio)
    free = surrogate(ratio, advantage)
    held = tl.minimum(tl.maximum(ratio, 1.0 - low), 1.0 + high) * advantage
    clipped = held < free  # false for NaN, so that a NaN ratio shows in the loss
    is_low = (ratio < 1.0 - low) & (advantage < 0)
    is_high = (ratio > 1.0 + high) & (advantage > 0)
    loss = -tl.where(clipped, held, free)
    return loss, tl.zeros_like(logprob), tl.where(clipped, 0.0, -free), is_low, is_high


@triton.jit
def dual_clip(logprob, log_ratio, advantage, low, high, cap, c3):
    """Returns ppo_clip's loss, but at most −cap·A where A < 0."""
    loss, slope, ratio_slope, is_low, is_high = ppo_clip(
        logprob, log_ratio, advantage, low, high, cap, c3
    )
    bound = -cap * advantage
    held = (advantage < 0) & (bound < loss)
    loss = tl.where(held, bound, loss)
    return loss, slope, tl.where(held, 0.0, ratio_slope), is_low, is_high | held


@triton.jit
def cispo(logprob, log_ratio, advantage, low, high, c2, c3):
    """Returns −sg(clip(r, 1 − low, 1 + high))·A·log π."""
    ratio = tl.exp(log_ratio)
    is_low = ratio < 1.0 - low
    is_high = ratio > 1.0 + high
    weight = tl.where(is_low, 1.0 - low, tl.where(is_high, 1.0 + high, ratio))
    return weighted_logprob(weight, logprob, advantage, is_low, is_high)


@triton.jit
def sapo(logprob, log_ratio, advantage, tau_positive, tau_negative, c2, c3):
    """Returns −A·(4/τ)·σ(τ·(r − 1)), τ by the sign of A."""
    ratio = tl.exp(log_ratio)
    tau = tl.where(advantage > 0, tau_positive, tau_negative)
    sigmoid = 1.0 / (1.0 + tl.exp(-tau * (ratio - 1.0)))
    # σ(−x) and not 1 − σ(x), which has no digits left where σ(x) is almost 1.
    flank = sigmoid / (1.0 + tl.exp(tau * (ratio - 1.0)))
    # r·σ(x)·σ(−x) with r = inf is 0·inf: the gate is flat there.
    ratio_slope = tl.where(flank == 0, 0.0, -advantage * 4.0 * ratio * flank)
    return unclipped(-advantage * (4.0 / tau) * sigmoid, tl.zeros_like(logprob), ratio_slope)


@triton.jit
def bounded_change(logprob, log_ratio, advantage, cap, too_low, too_high):
    """Returns −A·sg(min(r, cap))·log π where the probability has not gone too far, else 0."""
    ratio = tl.exp(log_ratio)
    held = tl.where(advantage > 0, too_high, too_low)
    weight = tl.where(held, 0.0, tl.where(ratio > cap, cap, ratio))
    positive = advantage > 0
    is_low = tl.where(positive, False, too_low)
    return weighted_logprob(weight, logprob, advantage, is_low, too_high & positive)


@triton.jit
def probability_change(logprob, log_ratio):
    """Returns p − p_old."""
    return tl.exp(logprob) - tl.exp(logprob - log_ratio)


@triton.jit
def dppo_tv(logprob, log_ratio, advantage, low, high, cap, c3):
    """Returns the bounded loss where −low ≤ p − p_old ≤ high in the direction of A."""
    change = probability_change(logprob, log_ratio)
    return bounded_change(logprob, log_ratio, advantage, cap, change < -low, change > high)


@triton.jit
def dppo_kl(logprob, log_ratio, advantage, low, high, cap, c3):
    """Returns the bounded loss where KL(Bernoulli p_old ‖ Bernoulli p) ≤ low or high."""
    p = tl.exp(logprob)
    old = tl.exp(logprob - log_ratio)
    # A token that is almost certain leaves 1 − p without a digit.
    left = -expm1(logprob)
    old_left = -expm1(logprob - log_ratio)
    divergence = -old * log_ratio + old_left * tl.log((old_left + 1e-8) / (left + 1e-8))
    too_low = (divergence > low) & (p < old)
    too_high = (divergence > high) & (p > old)
    return bounded_change(logprob, log_ratio, advantage, cap, too_low, too_high)


@triton.jit
def dro(logprob, log_ratio, advantage, beta, c1, c2, c3):
    """Returns −(A·log π − (beta/2)·(log r)²)."""
    pull = beta * log_ratio
    loss = -(advantage * logprob - 0.5 * pull * log_ratio)
    return unclipped(loss, -advantage, pull)


@triton.jit
def vespo(logprob, log_ratio, advantage, k_positive, rate_positive, k_negative, rate_negative):
    """Returns −sg(W^k·exp(λ·(1 − W)))·A·log π, in logarithms: W may be far from 1."""
    positive = advantage >= 0
    k = tl.where(positive, k_positive, k_negative)
    rate = tl.where(positive, rate_positive, rate_negative)
    weight = tl.exp(k * log_ratio + rate * (1.0 - tl.exp(log_ratio)))
    return unclipped(-weight * advantage * logprob, -weight * advantage, tl.zeros_like(logprob))


@triton.jit
def topr(logprob, log_ratio, advantage, c0, c1, c2, c3):
    """Returns −A·log π for A > 0, else −A·sg(min(r, 1))·log π."""
    ratio = tl.exp(log_ratio)
    positive = advantage > 0
    held = tl.where(positive, False, ratio > 1.0)
    weight = tl.where(positive | held, 1.0, ratio)
    return weighted_logprob(weight, logprob, advantage, tl.zeros_like(logprob) != 0, held)


@triton.jit
def regression(logprob, log_ratio, advantage, beta, c1, c2, c3):
    """Returns (beta·log_ratio − A)²."""
    rest = beta * log_ratio - advantage
    return unclipped(rest * rest, tl.zeros_like(logprob), 2.0 * beta * rest)


@triton.jit
def prime_ipo(logprob, log_ratio, advantage, low, high, drift_coef, c3):
    """Returns −r·A where −low ≤ p − p_old ≤ high, else 0; + drift_coef·(log r)²."""
    change = probability_change(logprob, log_ratio)
    is_low = change < -low
    is_high = change > high
    loss = tl.where(is_low | is_high, 0.0, -tl.exp(log_ratio) * advantage)
    drift = drift_coef * log_ratio
    zero = tl.zeros_like(logprob)
    return loss + drift * log_ratio, zero, loss + 2.0 * drift, is_low, is_high


@triton.jit
def cfpo(logprob, log_ratio, advantage, width, c1, c2, c3):
    """Returns −(r·A − |A|/(2·width)·(r − 1)²)."""
    ratio = tl.exp(log_ratio)
    excess = ratio - 1.0
    size = tl.abs(advantage)
    sign = tl.where(advantage > 0, 1.0, -1.0)
    # One product: where r overflows, its square less itself would be NaN.
    loss = size * (excess * (excess / (2.0 * width) - sign) - sign)
    slope = ratio * size * (excess / width - sign)
    zero = tl.zeros_like(logprob)
    nothing = (advantage == 0) & (ratio == ratio)
    return unclipped(tl.where(nothing, 0.0, loss), zero, tl.where(nothing, 0.0, slope))


@triton.jit
def dft(logprob, log_ratio, advantage, c0, c1, c2, c3):
    """Returns −sg(p)·A·log π."""
    weight = tl.exp(logprob)
    return unclipped(-weight * advantage * logprob, -weight * advantage, tl.zeros_like(logprob))


# In the order of the reference's table.
GATES = {
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
