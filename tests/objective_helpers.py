# SPDX-License-Identifier: Apache-2.0
"""Tokens on which the formulas of the objective are looked at, and coefficients for them."""

import itertools
import math

import pytest
import torch

import rlkern
from rlkern.backends.eager.gates import GATE_COEFFICIENTS, GATES
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.backends.eager.levels import LEVELS
from rlkern.backends.eager.token_objective import Objective, Rows

# Numbers of a size that each gate is used with: clip_low, clip_high, cap, or τ, β, k and λ. A gate
# that is not here has the defaults of an algorithm.
LOW, HIGH = 0.2, 0.28
COEFFICIENTS = {
    "ppo_clip": (LOW, HIGH, 0.0, 0.0),
    "cispo": (LOW, HIGH, 0.0, 0.0),
    "dual_clip": (LOW, HIGH, 3.0, 0.0),
    "sapo": (1.0, 1.05, 0.0, 0.0),
    "dppo_tv": (0.15, 0.2, 20.0, 0.0),
    "dppo_kl": (0.05, 0.05, 20.0, 0.0),
    "dro": (0.1, 0.0, 0.0, 0.0),
    "vespo": (2.0, 3.0, 3.0, 2.0),
    "regression": (0.5, 0.0, 0.0, 0.0),
    "prime_ipo": (0.1, 0.1, 0.05, 0.0),
    "cfpo": (0.2, 0.0, 0.0, 0.0),
}
# Far apart, near, almost equal and equal; the last are on the edges of the clip.
DIFFERENCES = (-100.0, -20.0, -2.0, -0.1, -1e-4, -1e-9, 0.0, 1e-9, 1e-4, 0.1, 2.0, 20.0, 100.0)
EDGES = (math.log(1 - LOW), math.log(1 + HIGH))
LOGPROBS = (0.0, -1e-6, -1.5, -40.0)
ADVANTAGES = (-2.0, 0.0, 0.7)
# These gates and estimators stop gradients: their derivative is not that of their value.
STOPPED = ("cispo", "dppo_tv", "dppo_kl", "vespo", "topr", "dft")
# On none of the differences: there the sides of a rounding would decide.
CLAMPS = {"log_ratio_min": -1.1, "log_ratio_max": 0.05, "kl_max": 0.7}
EVERY_GATE = pytest.mark.parametrize("gate", GATES)
EVERY_LEVEL = pytest.mark.parametrize("level", LEVELS)
EVERY_KL = pytest.mark.parametrize("kl", KL_ESTIMATORS)


def _declared(gate):
    """Returns the coefficients of a gate, as one of its algorithms declares them."""
    for one in rlkern.algorithms().values():
        if one.gate == gate and one.gate_coef:
            return {name: one.defaults[name] for name in one.gate_coef}
    return {}


def has_edges(gate):
    """Returns whether the first two coefficients of a gate are the widths of a clip."""
    return list(_declared(gate))[:2] == ["clip_low", "clip_high"]


def _defaults(gate):
    numbers = _declared(gate).values() or (LOW, HIGH)  # a level may take widths
    return tuple([*numbers, *[0.0] * GATE_COEFFICIENTS][:GATE_COEFFICIENTS])


def objective_of(gate, level="token", kl="k3", kl_coef=0.3, entropy_coef=0.2, **clamps):
    coefficients = COEFFICIENTS.get(gate) or _defaults(gate)
    return Objective(gate, level, kl, coefficients, kl_coef, entropy_coef, **clamps)


def grid(dtype, from_refs=(0.5,)):
    """Returns (logprob, entropy, rows) of all combinations, each a sequence of its own."""
    points = list(itertools.product(LOGPROBS, ADVANTAGES, (*DIFFERENCES, *EDGES), from_refs))
    columns = torch.tensor(points, dtype=dtype).T.unsqueeze(-1)
    logprob, advantage, from_old, from_ref = (x.contiguous() for x in columns)
    weight = 0.5 + torch.arange(logprob.numel(), dtype=dtype).remainder(3)[:, None]
    weight[::7] = 0
    terms = weight.flip(0) / 2, weight.roll(1) / 8, weight.roll(2), weight.roll(3) / 4
    rows = Rows(advantage, weight, logprob - from_old, logprob - from_ref, *terms)
    return logprob, 0.1 - logprob, rows


def sequences(dtype, S=30, T=5):
    """Returns (logprob, entropy, rows) of ragged sequences, one of them without a token."""
    random = torch.Generator().manual_seed(3)
    sizes = torch.tensor([1e-3, 0.3, 2.0])[torch.randint(3, (S, 1), generator=random)].double()
    logprob, d, ref = torch.randn(3, S, T, generator=random, dtype=torch.float64)
    advantage = torch.randn(S, T, generator=random, dtype=torch.float64)
    advantage[: S // 2] = advantage[: S // 2, :1]  # of sequences, and of tokens
    advantage[3:5], d[5], d[6] = 0, 20.0, -20.0
    logprob = -logprob.abs()
    lengths = torch.randint(1, T + 1, (S, 1), generator=random)
    weight = torch.where(torch.arange(T) < lengths, 1.0 / lengths, 0.0).double()
    weight[2] = 0
    x = [logprob, 0.1 - logprob, advantage, weight, logprob - sizes * d, logprob + ref, d.exp()]
    x += [(logprob > -0.5) * 0.3, weight + 0.1, (logprob > -0.3) * 0.2]
    logprob, entropy, *rest = (y.to(dtype) for y in x)
    return logprob, entropy, Rows(*rest)
