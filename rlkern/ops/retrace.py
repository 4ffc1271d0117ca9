# SPDX-License-Identifier: Apache-2.0
"""Retrace: action values of one policy from the steps of another."""

import torch
from torch import Tensor

from rlkern.backends.eager.gae import td_error
from rlkern.ops._steps import steps


def retrace(
    log_ratio: Tensor,
    reward: Tensor,
    action_value: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    discount: float | Tensor = 1.0,
    gae_lambda: float | Tensor = 1.0,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """Returns Retrace(λ) targets of the action values from another policy's steps.

        c_t = λ·min(1, ratio_t)
        G_t = r_t + discount·(V_{t+1} + c_{t+1}·(G_{t+1} − Q_{t+1}))

    G of the last counted token is r + discount·bootstrap.

    Paper: arXiv 1606.02647, eq. 3 with the traces of §3. V is Σ_a π(a)·Q(a), the expectation under
    the policy that learns. t + 1 is the next counted token; rlax indexes rewards by t + 1.

    Arguments
        log_ratio     (..., T) log π(token) − log of the policy that acted
        action_value  (..., T) Q of the action taken
        value         (..., T) V of the state, the expectation of Q under π
        gae_lambda    λ, a number or one per sequence
        the others    as of gae
    Returns
        (..., T), 0 where mask is False
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none: the result is a constant

    >>> reward, q = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.5]])
    >>> log_ratio, mask = torch.tensor([[1.0, 0.5]]).log(), torch.ones(1, 2, dtype=torch.bool)
    >>> retrace(log_ratio, reward, q, torch.tensor([[0.0, 2.0]]), mask).tolist()
    [[3.25, 1.0]]
    """
    rows = steps("retrace", reward, mask, cu_seqlens)
    rows = rows.with_ends(terminated, truncated, final_value)
    q, value = rows.floats("action_value", action_value), rows.floats("value", value)
    trace = rows.floats("log_ratio", log_ratio).exp().clamp(max=1.0)
    trace = rows.coefficient("gae_lambda", gae_lambda) * trace
    gamma, after = rows.coefficient("discount", discount), rows.after(bootstrap)
    delta = td_error(rows.reward, gamma, rows.following(value, after), q)
    error = rows.scan(delta, gamma * rows.following(trace, after.new_zeros(())))
    return torch.where(rows.mask, error + q, 0.0).reshape(rows.shape)
