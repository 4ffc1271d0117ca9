# SPDX-License-Identifier: Apache-2.0
"""The operation gae: advantages and value targets in one call. Its results are constants."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.backends import implementation
from rlkern.ops._library import register
from rlkern.ops._steps import steps

forward = register(
    "gae(Tensor reward, Tensor value, Tensor mask, Tensor coefficients, Tensor? bootstrap,"
    " Tensor? cu_seqlens, bool whiten) -> (Tensor, Tensor)",
    lambda reward, *rest: implementation("gae", reward)(reward, *rest),
    lambda reward, *rest: (torch.empty_like(reward), torch.empty_like(reward)),
)


class Gae(NamedTuple):
    """Advantages, and the returns a value function is fitted to; 0 where mask is False."""

    advantage: Tensor
    target: Tensor


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    discount: float | Tensor = 1.0,
    gae_lambda: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    whiten: bool = False,
    group=None,
) -> Gae:
    """Returns generalised advantage estimates of each token and the value targets.

        δ_t = r_t + discount·V_{t+1} − V_t        A_t = δ_t + discount·gae_lambda·A_{t+1}
        target_t = A_t + V_t

    Paper: arXiv 1506.02438, eq. 16. t + 1 is the next counted token: masked tokens, such as a
    tool's answer inside a dialogue, are stepped over (as in verl; in OpenRLHF they are steps of
    reward 0 and value 0). After the last counted token comes `bootstrap`: 0 where the episode
    terminated, the value of the state it was cut off in where it was truncated. A row that holds
    several episodes is several sequences of cu_seqlens.

    Whitening is (A − mean) / √(variance + 1e-8) over all counted tokens, with ddof = 1 (TRL, verl;
    OpenRLHF has ddof = 0); the target keeps its scale. Two λ, one for the policy and one for the
    value (arXiv 2503.01491, VC-PPO), are two calls; `length_adaptive_lambda` makes VAPO's.

    Arguments
        reward      (..., T) float32 or float64; packed sequences are (N,)
        value       of the same shape and dtype
        mask        of the same shape, bool, True counts; anything elsewhere
        discount    γ, a number or one per sequence; 1 for language models
        gae_lambda  λ, a number or one per sequence; 0.95
        bootstrap   one per sequence, in the dtype of the rewards; None: all episodes terminated
        cu_seqlens  (S + 1,) int64 or int32: where each packed sequence begins, and the last ends
        whiten      whether the advantages are whitened
        group       process group whose ranks hold the parts of one batch, for whitening
    Returns
        Gae(advantage, target), each of the shape of reward
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
    Gradient
        none: both are constants

    >>> reward, value = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> out = gae(reward, value, torch.tensor([[True, True]]), gae_lambda=1.0)
    >>> out.advantage.tolist(), out.target.tolist()
    ([[0.5, 0.5]], [[1.0, 1.0]])
    """
    rows = steps("gae", reward, mask, cu_seqlens)
    if group is not None and not whiten:
        raise ValueError("gae: group belongs to whiten=True, got whiten=False")
    arguments = (
        rows.reward,
        rows.floats("value", value),
        rows.mask,
        rows.coefficients(discount=discount, gae_lambda=gae_lambda),
        rows.per_sequence("bootstrap", bootstrap),
        rows.cu_seqlens,
        whiten and group is None,
    )
    advantage, target = forward(*arguments)
    if group is not None:
        advantage = aggregate.whiten(advantage, rows.mask, group=group)
    if advantage.shape == rows.shape:
        return Gae(advantage, target)
    return Gae(advantage.reshape(rows.shape), target.reshape(rows.shape))
