# SPDX-License-Identifier: Apache-2.0
"""Every KL estimator and its derivative in log π: the Triton home of rlkern/backends/eager/kl.py.

d = log π − log π_ref; log_ratio = log π − log π_old of the token.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from rlkern.backends.triton._math import exp_rest, expm1


@triton.jit
def k1(d, log_ratio):
    """Returns d and 1."""
    return d, tl.zeros_like(d) + 1.0


@triton.jit
def k2(d, log_ratio):
    """Returns d²/2 and d."""
    return 0.5 * d * d, d


@triton.jit
def k3(d, log_ratio):
    """Returns exp(−d) − 1 + d and 1 − exp(−d), in neither of which small d cancel."""
    return exp_rest(-d), -expm1(-d)


@triton.jit
def absolute(d, log_ratio):
    """Returns |d| and its sign."""
    return tl.abs(d), tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, d))


@triton.jit
def k1_straight_through(d, log_ratio):
    """Returns the value of k1 and the derivative of k2."""
    return d, d


@triton.jit
def k3_straight_through(d, log_ratio):
    """Returns the value of k3 and the derivative of k2."""
    value, _ = k3(d, log_ratio)
    return value, d


@triton.jit
def importance_k1(d, log_ratio):
    """Returns r·d and its derivative: both factors depend on log π."""
    ratio = tl.exp(log_ratio)
    return ratio * d, ratio * (d + 1.0)


@triton.jit
def level_k3(d, log_ratio):
    """Returns r·k3 and its derivative, r a constant: it is the gate's, not the token's alone.

    Far below the reference r and exp(−d) are multiplied as one power: r may be 0 and k3 infinite.
    """
    value, slope = k3(d, log_ratio)
    ratio, power, e = tl.exp(log_ratio), tl.exp(log_ratio - d), tl.exp(d)
    far = d < -1.0
    value = tl.where(far, power * (1.0 - e * (1.0 - d)), ratio * value)
    return value, tl.where(far, power * (e - 1.0), ratio * slope)


@triton.jit
def importance_k3(d, log_ratio):
    """Returns r·k3 and its derivative r·d, in which the exponentials of k3 and of its slope cancel,
    as r is the token's own."""
    value, _ = level_k3(d, log_ratio)
    return value, tl.exp(log_ratio) * d


class Kl(NamedTuple):
    """An estimator as kernels take it.

    Is its slope another's (straight through), and its ratio the gate's (of the level)?
    """

    estimator: Any
    straight_through: Any
    of_level: Any


@triton.jit
def kl_term(kl, d, own, seen, bound):
    """Returns (an estimator within ±bound, ∂/∂log π, ∂/∂ the log ratio that the gate sees).

    Beyond the bound, which may be None, the slopes are 0, unless it is straight through.
    """
    value, slope = kl.estimator(d, seen if kl.of_level else own)
    ratio_slope = value if kl.of_level else tl.zeros_like(value)
    if bound is not None:
        beyond = tl.abs(value) > bound
        ratio_slope = tl.where(beyond, 0.0, ratio_slope)
        if not kl.straight_through:
            slope = tl.where(beyond, 0.0, slope)
        value = tl.where(beyond, tl.where(value > 0, bound, -bound), value)
    return value, slope, ratio_slope


# In the order of the reference's table.
KL_ESTIMATORS = {
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
