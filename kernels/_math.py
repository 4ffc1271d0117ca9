# SPDX-License-Identifier: Apache-2.0
"""The Triton home of every formula: gates, KL estimators and the token objective made of them.

The definitions are rlkern/reference/token_objective.py; a test holds values and derivatives
together. Gates and estimators are passed to kernels as compile-time constants.
"""

import triton
import triton.language as tl


@triton.jit
def expm1(x):
    """Returns exp(x) − 1 to a few ulp: near 0, where the difference cancels, by a Taylor sum."""
    tail = 1.0 + x * (1.0 / 7) * (1.0 + x * (1.0 / 8) * (1.0 + x * (1.0 / 9)))
    head = 1.0 + x * (1.0 / 4) * (1.0 + x * (1.0 / 5) * (1.0 + x * (1.0 / 6) * tail))
    near = x * (1.0 + x * (1.0 / 2) * (1.0 + x * (1.0 / 3) * head))
    return tl.where(tl.abs(x) < 0.5, near, tl.exp(x) - 1.0)


@triton.jit
def reinforce(logprob, log_ratio, advantage, c0, c1):
    """Returns −A·log π and its derivative in log π."""
    return -advantage * logprob, -advantage


@triton.jit
def ppo_clip(logprob, log_ratio, advantage, c0, c1):
    """Returns −min(r·A, clip(r, 1 − c0, 1 + c1)·A) and its derivative in log π."""
    ratio = tl.exp(log_ratio)
    free = ratio * advantage
    held = tl.minimum(tl.maximum(ratio, 1.0 - c0), 1.0 + c1) * advantage
    clipped = held < free  # false for NaN, so that a NaN ratio shows in the loss
    return -tl.where(clipped, held, free), tl.where(clipped, 0.0, -free)


@triton.jit
def kl_k1(logprob, ref_logprob):
    """Returns d = log π − log π_ref and its derivative in log π."""
    difference = logprob - ref_logprob
    return difference, difference * 0.0 + 1.0


@triton.jit
def kl_k2(logprob, ref_logprob):
    """Returns d²/2 and its derivative in log π."""
    difference = logprob - ref_logprob
    return 0.5 * difference * difference, difference


@triton.jit
def kl_k3(logprob, ref_logprob):
    """Returns exp(−d) − 1 + d and its derivative in log π."""
    difference = logprob - ref_logprob
    excess = expm1(-difference)
    return excess + difference, -excess


# In the order of the reference's tables.
GATES = {"reinforce": reinforce, "ppo_clip": ppo_clip}
KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@triton.jit
def token_terms(
    logprob, entropy, advantage, old_logprob, ref_logprob, c0, c1, kl_coef, entropy_coef,
    GATE: tl.constexpr, KL: tl.constexpr, HAS_REF: tl.constexpr,
):  # fmt: skip
    """Returns (ℓ, ∂ℓ/∂log π, ∂ℓ/∂H, KL to the reference) of tokens, weights not applied."""
    loss, slope = GATE(logprob, logprob - old_logprob, advantage, c0, c1)
    kl = tl.zeros_like(logprob)
    if HAS_REF:
        kl, kl_slope = KL(logprob, ref_logprob)
        loss += kl_coef * kl
        slope += kl_coef * kl_slope
    return loss - entropy_coef * entropy, slope, -entropy_coef, kl


@triton.jit
def policy_change(logprob, old_logprob, advantage, c0, c1):
    """Returns (KL to the old policy by k3, ratio, clipped low, clipped high) of tokens."""
    ratio = tl.exp(logprob - old_logprob)
    old_kl, _ = kl_k3(logprob, old_logprob)
    low = (ratio < 1.0 - c0) & (advantage < 0)
    high = (ratio > 1.0 + c1) & (advantage > 0)
    return old_kl, ratio, low.to(tl.float32), high.to(tl.float32)
