# SPDX-License-Identifier: Apache-2.0
"""Factors of tokens that a statistic of the whole batch decides: what one token gets depends on all
tokens of the optimizer step.

A factor is a constant of the step. It is made once, from all rows of all micro-batches and of all
processes: of a part of the step it would be another one. It multiplies the loss (`correction`) or,
of KL-Cov, |log r| in it (`penalty`).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlkern.aggregate import masked_mean
from rlkern.algorithms import Algorithm
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.ops import _check as check
from rlkern.ops._mismatch import effective_share
from rlkern.ops._rows import of_each_token
from rlkern.ops.reverse_scan import reverse_scan


class Step(NamedTuple):
    """The tokens of an optimizer step, constants; what does not count is 0.

    logprob     (B, T) log π of the policy that the step is about to move; (N,) if packed
    log_ratio   (B, T) log π − log π_old
    advantage   (B, T)
    counted     (B, T) bool
    entropy     (B, T), None if it was not given
    cu_seqlens  (S + 1,) bounds of packed sequences, None for rows of (B, T)
    generator   where random numbers come from, None for torch's own
    """

    logprob: Tensor
    log_ratio: Tensor
    advantage: Tensor
    counted: Tensor
    entropy: Tensor | None = None
    cu_seqlens: Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def number(self) -> Tensor:
        """How many tokens count: a whole number, which float32 would round."""
        return self.counted.sum().double()

    @property
    def covariance(self) -> Tensor:
        """(A − mean of A)·(log π − mean of log π), a token's share of the batch's covariance."""
        centered = [x - masked_mean(x, self.counted) for x in (self.advantage, self.logprob)]
        return centered[0] * centered[1]

    def part(self, share: float) -> Tensor:
        """Returns how many tokens a share of the counted ones is, at least 1."""
        return (share * self.number).floor().clamp(min=1)

    def kept(self, keep: Tensor) -> Tensor:
        """Returns 1 where a counted token is kept, else 0."""
        return (keep & self.counted).to(self.logprob.dtype)


def m2po(step: Step, *, second_moment: float) -> Tensor:
    """Returns 0 for the tokens with the largest (log r)² whose going makes its mean small, else 1.

        eligible  {A > 0, r > 1} ∪ {A < 0, r < 1}
        dropped   the largest (log r)² of these, until the mean over the rest is ≤ second_moment

    Paper: M2PO, arXiv 2510.01161, Algorithm 1. Only tokens that the step would push further from
    π_old are eligible; equal ones go together. AReaL sorts all tokens, between π_old and the
    sampler, and always keeps one.
    """
    moved = (step.advantage.sign() * step.log_ratio.sign()) > 0
    square = step.log_ratio.square()
    ordered = torch.where(moved & step.counted, square, torch.inf).flatten().sort().values
    count = torch.arange(1, ordered.numel() + 1, device=ordered.device)
    held = ordered.cumsum(0, dtype=torch.float64) / count <= second_moment
    beyond = torch.where(held, torch.inf, ordered)
    bound = torch.cat([beyond, beyond.new_full((1,), torch.inf)]).amin()
    return step.kept(~moved | (square < bound))


def clip_cov(step: Step, *, share: float, covariance_low: float, covariance_high: float) -> Tensor:
    """Returns 0 for a few tokens drawn among those whose covariance is high, else 1.

        eligible  covariance_low ≤ (A − mean of A)·(log π − mean of log π) ≤ covariance_high
        dropped   max(1, ⌊share·N⌋ of the N counted tokens) of these, at random

    Paper: Clip-Cov, arXiv 2505.22617: such tokens lower the entropy most. verl and SkyRL draw among
    those that the clip of the ratio does not hold already.
    """
    covariance = step.covariance
    eligible = (covariance >= covariance_low) & (covariance <= covariance_high) & step.counted
    source = "cpu" if step.generator is None else step.generator.device
    drawn = torch.rand(
        covariance.shape, generator=step.generator, dtype=torch.float64, device=source
    ).to(covariance.device)
    drawn = torch.where(eligible, drawn, torch.inf)
    return step.kept(~eligible | (drawn > _smallest(drawn, step.part(share))))


def entropy_quantile(step: Step, *, entropy_share: float) -> Tensor:
    """Returns 1 for the entropy_share of the tokens with the highest entropy, else 0.

        kept  H ≥ the (1 − entropy_share) quantile of H over the counted tokens

    Paper: "80/20", arXiv 2506.01939. As TRL's `top_entropy_quantile`; equal ones are kept together.
    """
    if step.entropy is None:
        raise ValueError(
            "entropy_quantile: entropy must be given (rlkern.token_logprob returns it), got None"
        )
    negative = torch.where(step.counted, -step.entropy, torch.inf)
    # Of N numbers the quantile lies between the N − ⌊share·(N − 1)⌋ smallest and the others.
    count = (entropy_share * (step.number - 1)).floor() + 1
    return step.kept(negative <= _smallest(negative, count))


def fipo(step: Step, *, half_life: float, future_low: float, future_high: float) -> Tensor:
    """Returns how far an answer's tokens from here on became likelier, within bounds.

        clip(exp Σ_{k≥t} γ^{k−t}·log r_k, 1 − future_low, 1 + future_high)    γ = 2^(−1/half_life)

    Paper: FIPO, arXiv 2603.19835. ms-swift also leaves tokens of ratios above a bound out of the
    sum, and holds the factor at 1 where A < 0 and the ratio is high; neither is done here.
    """
    discount = torch.full_like(step.log_ratio, 2.0 ** (-1.0 / half_life))
    future = reverse_scan(step.log_ratio, discount, cu_seqlens=step.cu_seqlens)
    factor = future.exp().clamp(1 - future_low, 1 + future_high)
    return torch.where(step.counted, factor, 0.0)


def ess(step: Step) -> Tensor:
    """Returns min(r, ESS), ESS the share of the tokens that the ratios leave effective.

        ESS = (Σ r)² / (N·Σ r²)  over the N counted tokens, in (0, 1]

    Paper: P3O, arXiv 2605.12380; the formula is that of the authors' FeynRL.
    """
    share = effective_share(step.log_ratio, step.counted)
    return torch.where(step.counted, step.log_ratio.exp().clamp(max=share), 0.0)


def kl_cov(step: Step, *, share: float, penalty_coef: float) -> Tensor:
    """Returns penalty_coef for the few tokens whose covariance is highest, else 0.

        held  the max(1, ⌊share·N⌋) largest (A − mean of A)·(log π − mean of log π) of N tokens

    Paper: KL-Cov, arXiv 2505.22617. It weighs |log r| in a term that is added to the loss of these
    tokens: the penalty of policy_loss, no factor of the loss. verl has a share of 2e-4 and a weight
    of 1.
    """
    negative = torch.where(step.counted, -step.covariance, torch.inf)
    return penalty_coef * step.kept(negative <= _smallest(negative, step.part(share)))


def _smallest(x: Tensor, count: Tensor) -> Tensor:
    """Returns the largest of the `count` smallest elements of x, −inf if x is empty."""
    ordered = x.flatten().sort().values
    if not ordered.numel():
        return ordered.new_full((), -torch.inf)
    # Gathered: as a subscript a tensor on a device would be waited for.
    return ordered.gather(0, (count.long() - 1).clamp(0, ordered.numel() - 1)[None])[0]


# By the name that a declaration's `statistic` gives it.
STATISTICS: dict[str, Callable[..., Tensor]] = {
    "m2po": m2po,
    "clip_cov": clip_cov,
    "entropy_quantile": entropy_quantile,
    "fipo": fipo,
    "ess": ess,
    "kl_cov": kl_cov,
}
# Those in which the tokens of other answers have no part: of a part of the step they are the same.
OF_ONE_ANSWER = ("fipo",)


def factor(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    algorithm: str | Algorithm,
    entropy: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    generator: torch.Generator | None = None,
    **coefficients: float,
) -> Tensor:
    """Returns what multiplies the policy loss of each token of an optimizer step, or |log r| in it,
    0 where mask is False: the statistic that the algorithm declares.

    Pass it to rlkern.policy_loss as the row that the algorithm's `statistic_row` names; multiply a
    `correction` with the rollout_correction, if there is one. Give all rows of the step at once.
    The denominator of the loss keeps every token.

    Arguments
        logprob       (B, T) float  log π of the policy that the step is about to move; (N,) with
                      cu_seqlens
        old_logprob   (B, T) float  log π_old, of the policy that sampled; where it is NaN, nobody
                      knows it and r is 1
        advantage     (B, T), (B,) or (B, 1) float; with cu_seqlens (N,), (S,) or (S, 1)
        mask          (B, T) bool   True counts; what other tokens hold is not read
        algorithm     an algorithm that declares a statistic, by its name or itself
        entropy       (B, T) float  of each token's distribution, if the statistic sorts by it
        cu_seqlens    (S + 1,) bounds of the answers in flat rows
        generator     where random numbers come from, if the statistic draws tokens
        coefficients  those of the statistic, in place of the algorithm's defaults
    Returns
        (B, T) float32 (float64 if logprob is)
    Raises
        TypeError, ValueError  for a wrong dtype, shape, device, algorithm or coefficient
    Gradient
        none

    >>> old = torch.log(torch.tensor([[0.5, 0.5, 0.2]]))
    >>> new, mask = torch.log(torch.tensor([[0.5, 0.6, 0.8]])), torch.tensor([[True, True, True]])
    >>> factor(new, old, torch.tensor([1.0]), mask, algorithm="m2po").tolist()
    [[1.0, 1.0, 0.0]]

    Of log² 1.2 = 0.03 and log² 4 = 1.92 the mean is above 0.04, and without the second it is 0.03.
    """
    op = "factor"
    declared = find_algorithm(algorithm)
    numbers = statistic_coefficients(declared, coefficients)
    check.tensor(op, "logprob", logprob, check.FLOATS)
    shape = logprob.shape
    bounds = check.sequence_bounds(op, cu_seqlens, shape, logprob.device)
    if bounds is None and len(shape) != 2:
        raise ValueError(
            f"{op}: logprob must be (B, T), or (N,) with cu_seqlens, got {check.describe(logprob)}"
        )
    check.like(op, "mask", mask, shape, logprob, (torch.bool,))
    spread = of_each_token(op, "advantage", advantage, shape, bounds)
    given = {"logprob": logprob, "old_logprob": old_logprob, "advantage": spread}
    if entropy is not None:
        given["entropy"] = entropy
    for name, x in given.items():
        check.like(op, name, x, shape, logprob, check.FLOATS)
    given["old_logprob"] = torch.where(old_logprob.isnan(), logprob, old_logprob)
    for name, x in given.items():
        check.finite_values(op, name, x, mask)
    dtype = torch.promote_types(logprob.dtype, torch.float32)
    known = {k: torch.where(mask, x.detach().to(dtype), 0.0) for k, x in given.items()}
    log_ratio = known["logprob"] - known.pop("old_logprob")
    step = Step(log_ratio=log_ratio, counted=mask, cu_seqlens=bounds, generator=generator, **known)
    return STATISTICS[declared.statistic](step, **numbers)


def statistic_coefficients(declared: Algorithm, given: dict[str, float]) -> dict[str, float]:
    """Returns the coefficients of an algorithm's statistic, those given over its defaults; raises
    for an algorithm without one, and for a name or number that is none of them."""
    if not declared.statistic:
        raise ValueError(
            f"{declared.name}: no statistic of the batch is declared; policy_loss needs no factor"
        )
    known = {name: declared.defaults[name] for name in declared.statistic_coef}
    for name in given:
        if name not in known:
            expected = ", ".join(known) or "none"
            raise TypeError(
                f"{declared.name}: unknown coefficient {name!r} of its statistic, expected one of"
                f" {expected}"
            )
    numbers = dict(zip(known, check.numbers(declared.name, {**known, **given})))
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{declared.name}: {name} must not be negative, got {number}")
    return numbers
