# SPDX-License-Identifier: Apache-2.0
"""How far the policy that is trained is from the one that sampled, in numbers to log."""

import torch
from torch import Tensor

from rlkern.aggregate import masked_mean, sequence_mean
from rlkern.backends.eager.kl import k1, k3
from rlkern.ops._mismatch import checked, effective_share


def off_policy_metrics(
    old_logprob: Tensor,
    rollout_logprob: Tensor,
    mask: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
) -> dict[str, Tensor]:
    """Returns the distance between the sampler μ and the trainer's π, by verl's names.

    With d = log π − log μ of a token and w = exp(d), of the tokens that μ drew:

        kl                −mean d                       k1 of KL(μ‖π), over tokens
        k3_kl             mean (w − 1 − d)              k3 of the same, never negative
        chi2_token        mean w² − 1                   χ²(π‖μ), the variance of w
        chi2_seq          mean (Π w)² − 1               the same of whole answers
        eff_sample_size   (mean w)² / mean w²           of the tokens, as a share: 1 is on policy
        training_ppl      mean exp(−mean_t log π)       perplexity, over answers
        rollout_ppl       mean exp(−mean_t log μ)
        log_ppl_diff      mean (−mean_t d)              and log_ppl_abs_diff of its size
        ppl_ratio         mean exp(−mean_t d)

    verl's compute_offpolicy_metrics clamps d and Σd to ±20 in χ², and takes the effective sample
    size (rollout_is_eff_sample_size) of the truncated factors; nothing is clamped here. Answers
    without a counted token are left out, as are tokens of which either log-probability is NaN.

    Arguments
        old_logprob      (B, T) float  log π by the trainer; (N,) with cu_seqlens
        rollout_logprob  (B, T) float  log μ as the sampler reported it
        mask             (B, T) bool   True counts
        cu_seqlens       (S + 1,) bounds of the answers in flat rows
    Returns
        ten float64 scalars on the device of mask, without a synchronisation; zeros if nothing
        counts
    Raises
        TypeError, ValueError  for a wrong dtype, shape or device
    Gradient
        none

    >>> old, rollout = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.25]]).log()
    >>> found = off_policy_metrics(old, rollout, torch.tensor([[True, True]]))
    >>> round(found["chi2_token"].item(), 4), round(found["eff_sample_size"].item(), 4)
    (1.5, 0.9)

    The ratios are 2 and 1: (4 + 1)/2 − 1 and (3/2)²/(5/2).
    """
    m = checked("off_policy_metrics", old_logprob, rollout_logprob, mask, cu_seqlens)
    d, nothing = m.log_ratio.double(), torch.zeros((), dtype=torch.float64, device=mask.device)

    def over_tokens(x: Tensor) -> Tensor:
        return masked_mean(x, m.known)

    def over_answers(x: Tensor) -> Tensor:
        return sequence_mean(x, m.known, cu_seqlens=m.sequences.cu_seqlens)

    gap = m.mean(-d)
    return {
        "kl": over_tokens(k1(-d, nothing, d)),
        "k3_kl": over_tokens(k3(-d, nothing, d)),
        "chi2_token": over_tokens(torch.expm1(2 * d)),
        "chi2_seq": over_answers(torch.expm1(2 * m.sequences.total(d))),
        "eff_sample_size": effective_share(d, m.known),
        "training_ppl": over_answers(m.mean(-m.old_logprob.double()).exp()),
        "rollout_ppl": over_answers(m.mean(-m.rollout_logprob.double()).exp()),
        "log_ppl_diff": over_answers(gap),
        "log_ppl_abs_diff": over_answers(gap.abs()),
        "ppl_ratio": over_answers(gap.exp()),
    }
