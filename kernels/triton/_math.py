# SPDX-License-Identifier: Apache-2.0
"""Functions of a number that Triton lacks or has with too few digits for a loss."""

import triton
import triton.language as tl


# A GPU's own minimum and maximum drop NaN unless they are told to hand it on.
@triton.jit
def smaller(x, y):
    """Returns the smaller of two numbers; NaN if either is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def larger(x, y):
    """Returns the larger of two numbers; NaN if either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp_rest(x):
    """Returns exp(x) − 1 − x to a few ulp: near 0, where all of it cancels, by a Taylor sum."""
    tail = 1.0 + x * (1.0 / 7) * (1.0 + x * (1.0 / 8) * (1.0 + x * (1.0 / 9)))
    head = 1.0 + x * (1.0 / 4) * (1.0 + x * (1.0 / 5) * (1.0 + x * (1.0 / 6) * tail))
    near = 0.5 * x * x * (1.0 + x * (1.0 / 3) * head)
    return tl.where(tl.abs(x) < 0.5, near, tl.exp(x) - 1.0 - x)


@triton.jit
def expm1(x):
    """Returns exp(x) − 1 to a few ulp, near 0 too."""
    return tl.where(tl.abs(x) < 0.5, x + exp_rest(x), tl.exp(x) - 1.0)


@triton.jit
def reciprocal(x):
    """Returns 1/x to an ulp for 1 ≤ x ≤ 2, by a step of Newton's from 1/√x.

    A division that holds for all numbers takes twice as many instructions.
    """
    root = tl.math.rsqrt(x)
    y = root * root
    return tl.fma(y, tl.fma(-x, y, 1.0), y)


@triton.jit
def sigmoids(x):
    """Returns (σ(−2|x|), σ(2|x|)), of which the first has all its digits also where it is small."""
    q = tl.exp2(tl.abs(x) * -2.8853900817779268)  # exp(−2|x|)
    large = reciprocal(1.0 + q)
    return q * large, large


@triton.jit
def tanh(x):
    """Returns tanh(x) to a few ulp: near 0 by a polynomial, else 1 − 2σ(−2|x|) with its sign."""
    # A minimax fit of (tanh x / x − 1)/x² in x² up to 0.55: relative error of tanh 4e-8.
    y = x * x
    near = x + x * y * (-0.33332957 + y * (0.13320942 + y * (-0.05268414 + y * 0.01645875)))
    small, _ = sigmoids(x)
    far = 1.0 - 2.0 * small
    return tl.where(tl.abs(x) < 0.55, near, tl.where(x < 0, -far, far))


@triton.jit
def tanh_slope(x):
    """Returns 1 − tanh(x)² without its cancellation for large |x|: 4σ(2x)σ(−2x)."""
    small, large = sigmoids(x)
    return 4.0 * small * large
