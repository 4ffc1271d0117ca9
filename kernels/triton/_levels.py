# SPDX-License-Identifier: Apache-2.0
"""Ratio levels: the Triton home of rlkern/backends/eager/levels.py.

A sequence is summed first, then every token of it is asked for its share of the gradient. The level
is passed to kernels as a compile-time string.
"""

import triton
import triton.language as tl

# In the order of the reference's table.
LEVELS = ("token", "sequence", "sequence_token", "product", "clipped_sequence")


@triton.jit
def own_ratio(log_ratio, advantage, low, high, LEVEL: tl.constexpr):
    """Returns (log ratio as its sequence takes it in, clip holds low, clip holds high)."""
    if LEVEL == "clipped_sequence":
        positive = advantage >= 0
        is_low = tl.where(positive, False, log_ratio < -low)
        is_high = positive & (log_ratio > high)
        return tl.where(is_low, -low, tl.where(is_high, high, log_ratio)), is_low, is_high
    else:
        nowhere = tl.zeros_like(log_ratio) != 0
        return log_ratio, nowhere, nowhere


@triton.jit
def sequence_ratio(total, tokens, LEVEL: tl.constexpr):
    """Returns the sequence's log ratio from the sum over its tokens."""
    if LEVEL == "product":
        return total
    else:
        return total / tl.maximum(tokens, 1.0)


@triton.jit
def slope_through_ratio(own, total, held, tokens, LEVEL: tl.constexpr):
    """Returns ∂loss/∂log π by way of the ratio, from the token's ∂loss/∂log r and their sum."""
    if LEVEL == "sequence_token":
        return own
    elif LEVEL == "product":
        return total + tl.zeros_like(own)
    else:
        return tl.where(held, 0.0, total / tl.maximum(tokens, 1.0))
