# SPDX-License-Identifier: Apache-2.0
"""The operation gae: advantages and value targets in one call. Its results are constants."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlkern import aggregate
from rlkern.backends import implementation
from rlkern.backends.eager.gae import td_error
from rlkern.ops import _check as check
from rlkern.ops._library import register
from rlkern.ops._steps import Steps, steps

forward = register(
    "gae(Tensor reward, Tensor value, Tensor mask, Tensor coefficients, Tensor? bootstrap,"
    " Tensor? cu_seqlens, int? ddof) -> (Tensor, Tensor)",
    lambda reward, *rest: implementation("gae", reward)(reward, *rest),
    lambda reward, *rest: (torch.empty_like(reward), torch.empty_like(reward)),
)


class Gae(NamedTuple):
    """Advantages, and the returns a value function is fitted to; 0 where mask is False."""

    advantage: Tensor
    target: Tensor


def estimates(
    rows: Steps,
    value: Tensor,
    discount: float | Tensor,
    gae_lambda: float | Tensor,
    bootstrap: Tensor | None,
    ddof: int | None = None,
) -> Gae:
    """Returns what gae does, in the shape of the steps; ddof is only for steps without ends."""
    value = rows.floats("value", value)
    if rows.ends is None:
        coefficients = rows.coefficients(discount=discount, gae_lambda=gae_lambda)
        after = rows.per_sequence("bootstrap", bootstrap)
        return Gae(
            *forward(rows.reward, value, rows.mask, coefficients, after, rows.cu_seqlens, ddof)
        )
    gamma, trace = (
        rows.coefficient("discount", discount),
        rows.coefficient("gae_lambda", gae_lambda),
    )
    following = rows.following(value, rows.after(bootstrap))
    delta = td_error(rows.reward, gamma, following, value)
    advantage = rows.scan(delta, gamma * trace)
    return Gae(advantage, torch.where(rows.mask, advantage + value, 0.0))


def _check_whitening(whiten: bool | str, ddof: int, group: object) -> None:
    if whiten not in (False, True, "centered"):
        raise ValueError(f"gae: whiten must be False, True or 'centered', got {whiten!r}")
    check.ddof("gae", ddof)
    if ddof != 1 and whiten is not True:
        raise ValueError(f"gae: ddof belongs to whiten=True, got whiten={whiten!r}")
    if group is not None and not whiten:
        raise ValueError("gae: group belongs to whiten=True or 'centered', got whiten=False")


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    discount: float | Tensor = 1.0,
    gae_lambda: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    final_value: Tensor | None = None,
    whiten: bool | str = False,
    ddof: int = 1,
    group=None,
) -> Gae:
    """Returns generalised advantage estimates of each token and the value targets.

        δ_t = r_t + discount·V_{t+1} − V_t        A_t = δ_t + discount·gae_lambda·A_{t+1}
        target_t = A_t + V_t

    Paper: arXiv 1506.02438, eq. 16. t + 1 is the next counted token: masked tokens, such as a
    tool's answer inside a dialogue, are stepped over (as in verl; in OpenRLHF they are steps of
    reward 0 and value 0). After the last counted token comes `bootstrap`: 0 where the episode
    terminated, the value of the state it was cut off in where it was truncated. A row that holds
    several episodes is several sequences of cu_seqlens, or has flags: V_{t+1} and A_{t+1} are 0
    where step t terminated; where it was truncated V_{t+1} is final_value and A_{t+1} is 0. The
    flags are gymnasium's, of the step itself. CleanRL's dones and Stable-Baselines3's
    episode_starts lie one step later; the latter adds discount·final_value to the reward instead,
    and CleanRL's PPO takes a truncation for a termination. With flags there are two scans in place
    of one sweep.

    Whitening is (A − mean) / √(variance + 1e-8) over all counted tokens, the variance divided by
    n − ddof: 1 in TRL and verl, 0 in OpenRLHF; "centered" is A − mean (OpenRLHF's no_std_norm). The
    target keeps its scale. Two λ, one for the policy and one for the value (arXiv 2503.01491,
    VC-PPO), are two calls; `length_adaptive_lambda` makes VAPO's.

    Arguments
        reward      (..., T) float32 or float64; packed sequences are (N,)
        value       of the same shape and dtype
        mask        of the same shape, bool, True counts; anything elsewhere
        discount    γ, a number or one per sequence; 1 for language models
        gae_lambda  λ, a number or one per sequence; 0.95
        bootstrap   one per sequence, in the dtype of the rewards; None: all episodes terminated
        cu_seqlens  (S + 1,) int64 or int32: where each packed sequence begins, and the last ends
        terminated, truncated  of the shape of reward, bool: the episode ended after this step, or
                    was cut off there. Both: it ended. Flags of masked steps are not read
        final_value  of the shape and dtype of reward: value of the state in which an episode was
                    cut off; goes with truncated, and is anything where that is False
        whiten      True: the advantages are whitened; "centered": their mean is taken off
        ddof        0 or 1, for whiten=True
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
    rows = rows.with_ends(terminated, truncated, final_value)
    _check_whitening(whiten, ddof, group)
    fused = whiten is True and group is None and rows.ends is None
    inside = ddof if fused else None
    advantage, target = estimates(rows, value, discount, gae_lambda, bootstrap, inside)
    if whiten == "centered":
        advantage = aggregate.center(advantage, rows.mask, group=group)
    elif whiten and not fused:
        advantage = aggregate.whiten(advantage, rows.mask, ddof=ddof, group=group)
    if advantage.shape == rows.shape:
        return Gae(advantage, target)
    return Gae(advantage.reshape(rows.shape), target.reshape(rows.shape))
