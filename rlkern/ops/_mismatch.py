# SPDX-License-Identifier: Apache-2.0
"""What the corrections of the mismatch between sampler and trainer share: log w, checked.

The sampler's log-probabilities (rollout_logprob, log μ) differ from the trainer's own of the same
policy (old_logprob): other kernels, other precision, stale weights. Both are constants of a batch,
so a correction is too: made once, used in every epoch, multiplied into the gate's loss by
policy_loss(correction=…) and never into the KL or entropy term (as in TRL). Whatever an answer's
masked tokens hold is not read. Nothing here has a gradient.

A log-probability may be NaN: vLLM sends such. A token whose log w is NaN is unknown, and gets no
correction: its factor is 1, it is kept, and its answer's sum, mean and maximum leave it out. It is
dropped only with its answer, which the other tokens judge; an answer of unknown tokens is kept.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.backends.eager.levels import Sequences
from rlkern.ops import _check as check


class Mismatch(NamedTuple):
    """What two models said of the counted tokens, 0 elsewhere, and their sequences.

    known is where a token counts and both said a number.
    """

    old_logprob: Tensor
    rollout_logprob: Tensor
    known: Tensor
    sequences: Sequences

    @property
    def log_ratio(self) -> Tensor:
        """Returns log w = log π_old − log μ."""
        return self.old_logprob - self.rollout_logprob

    def mean(self, x: Tensor) -> Tensor:
        """Returns the mean of x over the known tokens of each token's answer."""
        return self.sequences.mean(x, self.known)

    def answers(self, inside: Tensor) -> Tensor:
        """Returns where an answer is inside its bounds, or has no known token to judge it by."""
        return inside | (self.sequences.total(self.known.to(self.log_ratio.dtype)) == 0)


def effective_share(log_ratio: Tensor, counted: Tensor) -> Tensor:
    """Returns (Σ w)² / (N·Σ w²) of w = exp(log_ratio) over N counted tokens; 0 if N is 0.

    The share of the tokens that such weights leave effective, in (0, 1].
    """
    known = torch.where(counted, log_ratio, -torch.inf)
    # It is the same for c·w. With c = 1 / max w no square overflows.
    largest = torch.cat([known.flatten(), known.new_full((1,), -torch.inf)]).amax()
    scaled = torch.where(counted, (known - largest).exp(), 0.0)
    number = counted.sum().double().to(scaled.dtype)  # whole, which float32 could round on the way
    total, squares = scaled.sum().square(), number * scaled.square().sum()
    return total / torch.where(squares == 0, 1.0, squares)


def between(x: Tensor, low: float, high: float) -> Tensor:
    """Returns whether low ≤ x ≤ high."""
    return (x >= low) & (x <= high)


def checked(
    op: str, old_logprob: Tensor, rollout_logprob: Tensor, mask: Tensor, cu_seqlens: Tensor | None
) -> Mismatch:
    """Returns the mismatch of checked arguments."""
    check.tensor(op, "old_logprob", old_logprob, check.FLOATS)
    shape = old_logprob.shape
    check.like(op, "rollout_logprob", rollout_logprob, shape, old_logprob, check.FLOATS)
    check.like(op, "mask", mask, shape, old_logprob, (torch.bool,))
    bounds = check.sequence_bounds(op, cu_seqlens, shape, old_logprob.device)
    if bounds is None and len(shape) != 2:
        raise ValueError(
            f"{op}: old_logprob must be (B, T), or (N,) with cu_seqlens, "
            f"got {check.describe(old_logprob)}"
        )
    known = mask & ~(old_logprob - rollout_logprob).isnan()
    check.finite_values(op, "old_logprob", old_logprob, known)
    check.finite_values(op, "rollout_logprob", rollout_logprob, known)
    dtype = torch.promote_types(
        torch.promote_types(old_logprob.dtype, rollout_logprob.dtype), torch.float32
    )
    old, rollout = (
        torch.where(known, x.detach().to(dtype), 0.0) for x in (old_logprob, rollout_logprob)
    )
    return Mismatch(old, rollout, known, Sequences(shape, bounds))


def binary_kl(m: Mismatch) -> Tensor:
    """Returns KL(Bernoulli μ ‖ Bernoulli π_old) of each token: this token or another.

    Never more than KL(μ‖π_old) of the whole distributions. OpenRLHF holds both probabilities within
    1e-6 of 0 and 1; here it is infinite where π_old is 1 and μ is not.
    """
    taken, other = m.rollout_logprob.exp(), -torch.expm1(m.rollout_logprob)
    among_others = other * (other.log() - (-torch.expm1(m.old_logprob)).log())
    return taken * -m.log_ratio + torch.where(other > 0, among_others, 0.0)


def total_variation(m: Mismatch) -> Tensor:
    """Returns |π_old − μ| of each token's probabilities: that of the two Bernoulli variables."""
    return (m.old_logprob.exp() - m.rollout_logprob.exp()).abs()


# Exact divergences of two outcomes, the token that was drawn or another, by name.
TWO_OUTCOMES: dict[str, Callable[[Mismatch], Tensor]] = {
    "binary_kl": binary_kl,
    "total_variation": total_variation,
}
