# SPDX-License-Identifier: Apache-2.0
"""V-trace: returns of one policy from the steps of another."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends.eager.gae import td_error
from rlkern.ops import _check as check
from rlkern.ops._steps import Steps, steps


class Vtrace(NamedTuple):
    """Advantages of the policy gradient, and the targets v; 0 where mask is False."""

    advantage: Tensor
    target: Tensor


def _truncated_ratio(rows: Steps, log_ratio: Tensor, name: str, limit: float) -> Tensor:
    limit = check.number(rows.op, name, limit)
    if limit <= 0:
        raise ValueError(f"{rows.op}: {name} must be greater than 0, got {limit}")
    return log_ratio.exp().clamp(max=limit)


def vtrace(
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    discount: float | Tensor = 1.0,
    rho_max: float = 1.0,
    trace_max: float = 1.0,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Vtrace:
    """Returns V-trace targets and policy-gradient advantages from another policy's steps.

        ρ_t = min(ratio_t, rho_max)        c_t = min(ratio_t, trace_max)
        δ_t = ρ_t·(r_t + discount·V_{t+1} − V_t)
        v_t = V_t + δ_t + discount·c_t·(v_{t+1} − V_{t+1}),   after the last token v = V = bootstrap
        A_t = ρ_t·(r_t + discount·v_{t+1} − V_t)

    Paper: IMPALA, arXiv 1802.01561, eq. 1 and §4.2. On policy, v is the n-step return to the end.
    t + 1 is the next counted token. rlax truncates the ρ of the advantage on its own; here it is
    the same.

    Arguments
        log_ratio   (..., T) log π(token) − log of the policy that acted, of the rewards' dtype
        rho_max     ρ̄, which sets the fixed point
        trace_max   c̄ ≤ ρ̄, which sets the speed of contraction
        the others  as of gae
    Returns
        Vtrace(advantage, target), each (..., T)
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none: both are constants

    >>> ratio, reward = torch.tensor([[0.5, 2.0]]), torch.tensor([[0.0, 1.0]])
    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> out = vtrace(ratio.log(), reward, torch.zeros(1, 2), mask)
    >>> out.advantage.tolist(), out.target.tolist()
    ([[0.5, 1.0]], [[0.5, 1.0]])
    """
    rows = steps("vtrace", reward, mask, cu_seqlens)
    rows = rows.with_ends(terminated, truncated, final_value)
    value, log_ratio = rows.floats("value", value), rows.floats("log_ratio", log_ratio)
    gamma, after = rows.coefficient("discount", discount), rows.after(bootstrap)
    rho = _truncated_ratio(rows, log_ratio, "rho_max", rho_max)
    trace = _truncated_ratio(rows, log_ratio, "trace_max", trace_max)
    delta = rho * td_error(rows.reward, gamma, rows.following(value, after), value)
    error = rows.scan(delta, gamma * trace)
    target = torch.where(rows.mask, error + value, 0.0)
    advantage = rho * td_error(rows.reward, gamma, rows.following(target, after), value)
    advantage = torch.where(rows.mask, advantage, 0.0)
    return Vtrace(advantage.reshape(rows.shape), target.reshape(rows.shape))
