# SPDX-License-Identifier: Apache-2.0
"""Losses of pairs of answers: the DPO family."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rlkern.backends.eager.preference_loss import DIVERGENCES, PREFERENCE_KINDS, PreferenceKind
from rlkern.ops._loss_output import LossOutput
from rlkern.ops._preference import Rows, coefficients, pair_metrics, weighted_sum


def _one_of(op: str, name: str, x: str, known: Mapping[str, object]) -> None:
    if x not in known:
        raise ValueError(f"{op}: {name} must be one of {', '.join(known)}, got {x!r}")


def _declared(
    op: str, kind: str, divergence: str, given: Mapping[str, float]
) -> tuple[PreferenceKind, dict[str, float]]:
    """Returns a kind and its coefficients beside beta, those given laid over its defaults."""
    _one_of(op, "kind", kind, PREFERENCE_KINDS)
    _one_of(op, "divergence", divergence, DIVERGENCES)
    declared = PREFERENCE_KINDS[kind]
    if divergence != "reverse_kl" and not declared.difference:
        raise ValueError(f"{op}: kind {kind!r} has reverse_kl alone, got divergence {divergence!r}")
    known = {**declared.defaults, **DIVERGENCES[divergence].defaults}
    for name in given:
        if name not in known:
            expected = ", ".join(["beta", *known])
            raise TypeError(
                f"{op}: unknown coefficient {name!r} of kind {kind!r}, expected one of {expected}"
            )
    return declared, {**known, **given}


def _wanted(
    op: str, kind: str, wanted: bool, named: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """Returns the tensors a kind wants; raises unless they are given where wanted, there alone."""
    for name, x in named.items():
        if (x is None) == wanted:
            verb = "must" if wanted else "must not"
            raise ValueError(f"{op}: {name} {verb} be given with kind {kind!r}")
    return {name: x for name, x in named.items() if x is not None}


def _mean(total: Tensor, tokens: Tensor) -> Tensor:
    """Returns total / tokens, and 0 with gradient 0 for an answer without a token."""
    empty = tokens == 0
    return torch.where(empty, 0.0, total / torch.where(empty, 1.0, tokens))


def _in_order(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the counted elements in ascending order, then zeros."""
    found = torch.where(mask, x, torch.inf).sort().values
    return torch.where(torch.arange(len(x), device=x.device) < mask.sum(), found, 0.0)


def _sorted(
    rows: Rows, declared: PreferenceKind, logprob: list[Tensor], ref: list[Tensor]
) -> tuple[list[Tensor], float | Tensor]:
    """Returns the two ordered vectors that a kind compares, and the weight of each place."""
    if declared.sorted_by == "models":
        found = [logprob[0] - logprob[1], ref[0] - ref[1]]
    else:
        found = [x - y for x, y in zip(logprob, ref, strict=True)]
    mask = rows.counted()
    place = torch.arange(len(mask), device=mask.device) < mask.sum()
    weight = Rows(rows.op, rows.like, place).weights(None)
    return [_in_order(x, mask) for x in found], weight


def preference_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    ref_chosen_logprob: Tensor | None = None,
    ref_rejected_logprob: Tensor | None = None,
    *,
    kind: str = "sigmoid",
    beta: float = 0.1,
    divergence: str = "reverse_kl",
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    **options: float,
) -> LossOutput:
    """Returns the loss Σ weight·ℓ of pairs of answers, and metrics.

    h = log π − log π_ref of an answer, Δ = h_chosen − h_rejected, ε = label_smoothing. Equations,
    papers and who differs are with each kind in rlkern/backends/eager/preference_loss.py.

        sigmoid       −log σ(β·Δ)                        DPO; sigmoid_norm has h per token
        conservative  (1 − ε)·ℓ(Δ) + ε·ℓ(−Δ)             cDPO, ℓ of DPO
        robust        ((1 − ε)·ℓ(Δ) − ε·ℓ(−Δ))/(1 − 2ε)  rDPO
        hinge         max(0, 1 − β·Δ)                    SLiC, RSO
        ipo           (Δ − 1/(2β))², h per token         as TRL; ipo_sum has h summed, as OpenRLHF
        exo_pair  discopop  nca_pair  sppo_hard  bco_pair  apo_zero  apo_down  aot  aot_unpaired
        cpo  simpo  alpha_po  orpo                       without a reference: h = log π

    LD-DPO is sigmoid of ld_sequence_logprob, under both models; WPO is any kind whose weight is of
    wpo_weight.

    Arguments
        chosen_logprob, rejected_logprob  (B,) float, log π of the answers, summed over tokens
                         (sequence_logprob) for every kind
        ref_chosen_logprob, ref_rejected_logprob  (B,) float, log π_ref
        kind             one of the names
        beta             β, which IPO calls τ and ORPO λ. The papers have 2 for SimPO, 0.001 for
                         SPPO and 0.01 for NCA, BCO and AOT
        divergence       reverse_kl, forward_kl, js or alpha (f-DPO), for kinds of Δ alone
        chosen_length, rejected_length  (B,) int or float, tokens of the answers, for the kinds
                         that average: sigmoid_norm, ipo, simpo, alpha_po, orpo. The mean of an
                         answer of length 0 is 0, and so is its gradient
        mask             (B,) bool, True counts; all by default
        weight           (B,) weight of each pair, by default 1 / (number of counted pairs). The
                         kinds that sort the batch, aot and aot_unpaired, take none
        options          label_smoothing, tau, margin, nll_coef, reward_shift or alpha, where the
                         kind or the divergence has it
    Returns
        LossOutput(loss, metrics): a float32 scalar (float64 for float64), and a vector that
        preference_metrics_dict reads. Rewards are β·h (of averages for the kinds that average,
        where TRL reports those of sums)
    Raises
        TypeError, ValueError  for a wrong dtype, shape or device, an unknown kind or option
    Gradient
        to chosen_logprob and rejected_logprob

    >>> chosen, rejected = torch.tensor([-2.0], requires_grad=True), torch.tensor([-3.0])
    >>> ref = torch.tensor([-3.0])
    >>> out = preference_loss(chosen, rejected, ref, ref, beta=1.0)
    >>> out.loss.backward()
    >>> round(out.loss.item(), 4), round(chosen.grad.item(), 4)  # log(1 + e⁻¹), −σ(−1)
    (0.3133, -0.2689)
    """
    op = "preference_loss"
    declared, known = _declared(op, kind, divergence, options)
    c = coefficients(op, {"beta": beta, **known}, declared.positive)
    rows = Rows.of(op, "chosen_logprob", chosen_logprob, mask)
    refs = {"ref_chosen_logprob": ref_chosen_logprob, "ref_rejected_logprob": ref_rejected_logprob}
    lengths = {"chosen_length": chosen_length, "rejected_length": rejected_length}
    logprob = rows.logprobs(
        {"chosen_logprob": chosen_logprob, "rejected_logprob": rejected_logprob}
    )
    ref = [
        x.detach() if x.requires_grad else x
        for x in rows.logprobs(_wanted(op, kind, declared.reference, refs))
    ]
    tokens = rows.lengths(_wanted(op, kind, declared.average, lengths))
    h = [x - y for x, y in zip(logprob, ref, strict=True)] if ref else logprob
    h = [_mean(x, n) for x, n in zip(h, tokens, strict=True)] if tokens else h
    with torch.no_grad():
        metrics = pair_metrics(rows, [c["beta"] * x for x in h], logprob)
    if declared.sorted_by:
        if weight is not None:
            raise ValueError(f"{op}: weight must not be given with kind {kind!r}, which sorts")
        h, weights = _sorted(rows, declared, logprob, ref)
    else:
        weights = rows.weights(weight)
    if declared.difference:
        h = [DIVERGENCES[divergence].score(x, c) for x in h]
    return LossOutput(weighted_sum(weights, declared.loss(h[0], h[1], c)), metrics)
