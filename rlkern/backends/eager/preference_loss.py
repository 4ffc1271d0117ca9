# SPDX-License-Identifier: Apache-2.0
"""The preference losses: what pairs of sequences, or sequences judged alone, lose.

h is the log-ratio log π − log π_ref of a sequence, or log π itself for a kind that needs no
reference; divided by the sequence's length for a kind that averages. Δ = h_chosen − h_rejected.
Derivatives come from autograd, and torch.compile fuses the whole: see benchmarks/LOG.md for why
there are no kernels.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rlkern.backends.eager.sigmoid import sigmoid as sigma

# Sums, in float64: the vectors of micro-batches and ranks add up. An answer is chosen if it is the
# better of a pair, or desirable; right counts the pairs or answers that are judged so.
PREFERENCE_METRICS = (
    "chosen", "rejected", "judged", "chosen_reward", "rejected_reward", "right",
    "chosen_logprob", "rejected_logprob",
)  # fmt: skip
Coefficients = Mapping[str, Any]  # numbers; in a graph scalar tensors
Loss = Callable[[Tensor, Tensor, Coefficients], Tensor]


def sigmoid(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns −log σ(β·Δ). Paper: arXiv 2305.18290, eq. 7 (DPO)."""
    return -logsigmoid(c["beta"] * (chosen - rejected))


def _smoothed(x: Tensor, c: Coefficients) -> Tensor:
    """Returns −(1 − ε)·log σ(x) − ε·log σ(−x), ε the label_smoothing."""
    flip = c["label_smoothing"]
    if isinstance(flip, (int, float)) and flip == 0:  # a tensor inside a graph, which cannot branch
        return -logsigmoid(x)
    return -(1 - flip) * logsigmoid(x) - flip * logsigmoid(-x)


def conservative(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns −(1 − ε)·log σ(β·Δ) − ε·log σ(−β·Δ): labels flipped with probability ε.

    Mitchell, A note on DPO with noisy preferences, 2023 (cDPO).
    """
    return _smoothed(c["beta"] * (chosen - rejected), c)


def robust(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns ((1 − ε)·ℓ(Δ) − ε·ℓ(−Δ)) / (1 − 2ε), ℓ of DPO: unbiased under flipped labels.

    Paper: arXiv 2403.00409, §3 (rDPO).
    """
    x, flip = c["beta"] * (chosen - rejected), c["label_smoothing"]
    return (flip * logsigmoid(-x) - (1 - flip) * logsigmoid(x)) / (1 - 2 * flip)


def hinge(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns max(0, 1 − β·Δ). Paper: arXiv 2305.10425, §2 (SLiC); 2309.06657 (RSO)."""
    return relu(1 - c["beta"] * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns (Δ − 1/(2β))². Paper: arXiv 2310.12036, eq. 17, β its τ.

    TRL and AReaL average over tokens (kind ipo), as the paper's authors did; OpenRLHF sums
    (kind ipo_sum).
    """
    return (chosen - rejected - 0.5 / c["beta"]).square()


def exo_pair(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns KL(p‖q), p = (σ(β·Δ), σ(−β·Δ)), q = (1 − ε, ε). Paper: arXiv 2402.00856, eq. 16.

    A sum over both outcomes of the pair: exact, whoever drew the answers.
    """
    x, flip = c["beta"] * (chosen - rejected), c["label_smoothing"]
    flip = torch.as_tensor(flip, dtype=torch.float64)
    won = sigma(x) * (logsigmoid(x) - torch.log1p(-flip))
    return won + sigma(-x) * (logsigmoid(-x) - torch.log(flip))


def discopop(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns −(1 − m)·log σ(x) + m·exp(−x) with x = β·Δ, m = σ(x/τ).

    Paper: arXiv 2406.08414, eq. 5.
    """
    x = c["beta"] * (chosen - rejected)
    y = x / c["tau"]
    # One exponential: σ(y) may be 0 where exp(−x) overflows.
    return torch.exp(logsigmoid(y) - x) - sigma(-y) * logsigmoid(x)


def nca_pair(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns −log σ(r_c) − ½·log σ(−r_c) − ½·log σ(−r_r) with r = β·h.

    Paper: arXiv 2402.05369, §4 (NCA for pairs).
    """
    x, y = c["beta"] * chosen, c["beta"] * rejected
    return -logsigmoid(x) - 0.5 * logsigmoid(-x) - 0.5 * logsigmoid(-y)


def sppo_hard(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns (h_c − 1/(2β))² + (h_r + 1/(2β))².

    Paper: arXiv 2405.00675, eq. 4.7 with probability 1 for the winner and 0 for the loser, β = 1/η.
    """
    half = 0.5 / c["beta"]
    return (chosen - half).square() + (rejected + half).square()


def bco_pair(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns −log σ(β·h_c − δ) − log σ(−(β·h_r − δ)), δ the reward_shift.

    Paper: arXiv 2404.04656. δ is the running mean of the rewards β·h, which the caller keeps; TRL's
    pairwise form leaves it at 0.
    """
    x, y = c["beta"] * chosen - c["reward_shift"], c["beta"] * rejected - c["reward_shift"]
    return -logsigmoid(x) - logsigmoid(-y)


def apo_zero(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns 1 − σ(β·h_c) + σ(β·h_r). Paper: arXiv 2408.06266, eq. 7."""
    return sigma(-c["beta"] * chosen) + sigma(c["beta"] * rejected)


def apo_down(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns σ(β·h_c) + 1 − σ(β·Δ). Paper: arXiv 2408.06266, eq. 8."""
    return sigma(c["beta"] * chosen) + sigma(-c["beta"] * (chosen - rejected))


def cpo(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns −log σ(β·Δ) − nll_coef·log π(chosen). Paper: arXiv 2401.08417, eq. 3.

    TRL divides the second term by the number of tokens of the batch. Its label_smoothing, of which
    the paper has none, is cDPO's.
    """
    return _smoothed(c["beta"] * (chosen - rejected), c) - c["nll_coef"] * chosen


def simpo(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns −log σ(β·Δ − margin), Δ of averages. Paper: arXiv 2405.14734, eq. 6 (γ is margin).

    With label_smoothing, as in TRL and torchtune, the x = β·Δ − margin of flipped labels is −x.
    """
    return _smoothed(c["beta"] * (chosen - rejected) - c["margin"], c)


def alpha_po(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns simpo's loss with (1 − p^−α)/α in place of log p, p = exp(average of log π).

    Paper: AlphaPO, arXiv 2501.03884, here as TRL has it (alpha of its CPO trainer, whose 0 is
    simpo). α > 0 makes the reward of likely answers flatter, α < 0 steeper. The paper's table 3 has
    α 0.25, margin 0.1 and β 2.5 for Mistral.
    """
    return simpo(alpha(chosen, c), alpha(rejected, c), c)


def _log_odds(logprob: Tensor) -> Tensor:
    """Returns log(p / (1 − p)) of log p ≤ 0, by expm1 where 1 − p cancels.

    At p = 1, also that of an empty answer, it is that of the largest p below, and has no gradient.
    """
    below = torch.where(logprob == 0, -torch.finfo(logprob.dtype).tiny, logprob)
    return below - torch.log(-torch.expm1(below))


def orpo(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns −log p_c − β·log σ(log odds(p_c) − log odds(p_r)), log p the average per token.

    Paper: arXiv 2403.07691, eqs. 4, 6 and 7, β its λ. TRL averages the first term over the tokens
    of the batch instead of those of the sequence.
    """
    return -chosen - c["beta"] * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def aot(chosen: Tensor, rejected: Tensor, c: Coefficients) -> Tensor:
    """Returns the smoothed DPO loss of sorted chosen minus sorted rejected values, element-wise.

    Paper: arXiv 2406.05882. Kind aot sorts log π(chosen) − log π(rejected) against the same of the
    reference; kind aot_unpaired sorts h_chosen against h_rejected.
    """
    return _smoothed(c["beta"] * (chosen - rejected), c)


def kto(log_ratio: Tensor, desirable: Tensor, kl: Tensor, c: Coefficients) -> Tensor:
    """Returns λ_D·(1 − σ(β·(h − z))) of the desirable and λ_U·(1 − σ(β·(z − h))) of the others.

    Paper: arXiv 2402.01306, eqs. 7 and 8 less the constant λ_y; z is kl.
    """
    x = c["beta"] * (log_ratio - kl)
    lost, kept = c["desirable_coef"] * sigma(-x), c["undesirable_coef"] * sigma(x)
    return torch.where(desirable, lost, kept)


def reverse_kl(h: Tensor, c: Coefficients) -> Tensor:
    """Returns h: f'(u) = log u + 1 less its constant, u = exp h."""
    return h


def forward_kl(h: Tensor, c: Coefficients) -> Tensor:
    """Returns −exp(−h): f'(u) = −1/u."""
    return -torch.exp(-h)


def js(h: Tensor, c: Coefficients) -> Tensor:
    """Returns log σ(h): f'(u) = log(2u/(1 + u)) less log 2."""
    return logsigmoid(h)


def alpha(h: Tensor, c: Coefficients) -> Tensor:
    """Returns (1 − exp(−α·h))/α: f'(u) = (1 − u^−α)/α. TRL's coefficient is 1 − α.

    The paper has 0 < α < 1, between reverse_kl (0, which is refused) and forward_kl (1). As in TRL
    α may lie beyond: −1 is Pearson's χ², f'(u) = u − 1.
    """
    return -torch.expm1(-c["alpha"] * h) / c["alpha"]


class Divergence(NamedTuple):
    """h ↦ f'(exp h), which takes the place of h in a loss of Δ, and its coefficients."""

    score: Callable[[Tensor, Coefficients], Tensor]
    defaults: Mapping[str, float] = MappingProxyType({})


# Paper: arXiv 2309.16240, table 1 (f-DPO). They score answers that anyone may have drawn; no
# divergence is estimated.
DIVERGENCES = {
    "reverse_kl": Divergence(reverse_kl),
    "forward_kl": Divergence(forward_kl),
    "js": Divergence(js),
    "alpha": Divergence(alpha, {"alpha": 0.5}),
}


class PreferenceKind(NamedTuple):
    """A pairwise loss, its coefficients beside beta, and what of the pair it looks at."""

    loss: Loss
    defaults: Mapping[str, float] = MappingProxyType({})
    reference: bool = True
    average: bool = False  # of log-probabilities over tokens, so lengths are needed
    difference: bool = False  # a function of Δ alone, for which a divergence is defined
    sorted_by: str = ""  # what is sorted across the batch before it is compared
    positive: tuple[str, ...] = ("beta", "tau")  # coefficients that must not be 0


_FLIPS = {"label_smoothing": 0.1}
_NO_FLIPS = {"label_smoothing": 0.0}
PREFERENCE_KINDS = {
    "sigmoid": PreferenceKind(sigmoid, difference=True),
    "sigmoid_norm": PreferenceKind(sigmoid, average=True, difference=True),
    "conservative": PreferenceKind(conservative, _FLIPS, difference=True),
    "robust": PreferenceKind(robust, _FLIPS, difference=True),
    "hinge": PreferenceKind(hinge, difference=True),
    "ipo": PreferenceKind(ipo, average=True, difference=True),
    "ipo_sum": PreferenceKind(ipo, difference=True),
    "exo_pair": PreferenceKind(
        exo_pair, {"label_smoothing": 1e-3}, difference=True, positive=("beta", "label_smoothing")
    ),
    "discopop": PreferenceKind(discopop, {"tau": 0.05}, difference=True),
    "nca_pair": PreferenceKind(nca_pair),
    "sppo_hard": PreferenceKind(sppo_hard),
    "bco_pair": PreferenceKind(bco_pair, {"reward_shift": 0.0}),
    "apo_zero": PreferenceKind(apo_zero),
    "apo_down": PreferenceKind(apo_down),
    "aot": PreferenceKind(aot, _NO_FLIPS, sorted_by="models"),
    "aot_unpaired": PreferenceKind(aot, _NO_FLIPS, sorted_by="answers"),
    "cpo": PreferenceKind(cpo, {"nll_coef": 1.0, **_NO_FLIPS}, reference=False),
    "simpo": PreferenceKind(simpo, {"margin": 0.5, **_NO_FLIPS}, reference=False, average=True),
    "alpha_po": PreferenceKind(
        alpha_po, {"margin": 0.1, "alpha": 0.25, **_NO_FLIPS}, reference=False, average=True
    ),
    "orpo": PreferenceKind(orpo, reference=False, average=True),
}
