# SPDX-License-Identifier: Apache-2.0
"""Compares a backend with the float64 reference, element by element, and checks its bias.

No tolerance is chosen by hand. An element of a result may be off by at most
    2 · eager's error  +  one ulp of the element  +  4 · what rounding in float32 makes of it.
The last is measured: the float64 reference runs again with every input moved by an ulp of float32.
A log-sum-exp has one rounding more: the sum, of at least 1, is off by half an ulp of 1.
Eager's error is the largest of the row, counted in (ulp + what rounding makes) of each element, as
an element may be right by luck. The mean error in ulps, with its sign, must be what rounding to
nearest leaves.
    python -m rlkern.testing.conformance --backend triton --device cuda
"""

import argparse
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

import rlkern
from rlkern.backends import NAMES
from rlkern.testing import interpreter
from rlkern.testing.cases import CASES, Case, make_batch
from rlkern.testing.runs import RUNS, VECTOR_OPERATIONS
from rlkern.testing.runs.inputs import Outputs, moved, moved_batch

FLOOR_ULP = 4
IN_PLACE = " (in place)"
EPS = torch.finfo(torch.float32).eps
# What is left of a row by way of log Σ exp(z − max z).
LOGARITHMS = ("logprob", "entropy", "lse")
# As many runs with moved inputs: the largest difference is by chance near 0 in 1 element of 10⁴.
DRAWS = 4
# Errors of rounding to nearest are uniform on ±½ ulp; a mean is off by 5 σ once in 10⁶ tensors.
SIGMAS, UNIFORM = 5, 12**-0.5


class Comparison(NamedTuple):
    """The element (or the mean) of an operation's outputs that comes nearest to its bound."""

    output: str
    error: float
    eager_error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


class Expected(NamedTuple):
    """What a call must return: the float64 results, eager's, and what float32 may make of them."""

    oracle: Outputs
    eager: Outputs
    inherited: Outputs


def error_of(x: Tensor, oracle: Tensor) -> Tensor:
    """Returns |x − oracle| in float64; 0 where both are NaN or the same infinity."""
    x, oracle = x.detach().double().cpu(), oracle.detach().cpu()
    same = (x == oracle) | (x.isnan() & oracle.isnan())
    return torch.where(same, 0.0, (x - oracle).abs().nan_to_num(torch.inf))


def ulp_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the distance between neighbours of a dtype at x.

    >>> ulp_of(torch.tensor([1.0, 1.99, 0.0]).double(), torch.bfloat16).log2().tolist()
    [-7.0, -7.0, -133.0]
    """
    info = torch.finfo(dtype)
    finite = x.nan_to_num(0.0, 0.0, 0.0).abs().clamp(min=info.smallest_normal)
    power = torch.ldexp(torch.ones_like(x), torch.frexp(finite).exponent - 1)
    return power * info.eps


def expectation(operation: str, case: Case, dtype: torch.dtype, device: str) -> Expected:
    """Returns what a call must return, for a case that is not in the list either."""
    run, batch = RUNS[operation], make_batch(case, dtype, device)
    precise = batch.to("cpu", torch.float64)
    with rlkern.use_backend("eager"):
        oracle = _detached(run(case, precise))
        eager = _detached(run(case, batch))
        inherited = {name: EPS * x.nan_to_num(0.0, 0.0, 0.0).abs() for name, x in oracle.items()}
        for draw in range(DRAWS):
            with moved(draw):
                for name, x in run(case, moved_batch(case, precise)).items():
                    inherited[name] = inherited[name].maximum(error_of(x, oracle[name]))
        for name in inherited.keys() & LOGARITHMS:
            inherited[name] = inherited[name].clamp(min=EPS / 2)
    return Expected(oracle, eager, inherited)


@lru_cache(maxsize=4)
def _expected(operation: str, name: str, dtype: torch.dtype, device: str) -> Expected:
    case = next(case for case in CASES if case.name == name)
    return expectation(operation, case, dtype, device)


def _detached(outputs: Outputs) -> Outputs:
    return {name: x.detach() for name, x in outputs.items()}


def expected(operation: str, case: Case, dtype: torch.dtype, device: str) -> Expected:
    """Returns what a call must return; the last ones asked for are remembered."""
    return _expected(operation.removesuffix(IN_PLACE), case.name, dtype, device)


def outputs(operation: str, case: Case, backend: str, dtype: torch.dtype, device: str) -> Outputs:
    """Returns what a backend makes of a case."""
    with rlkern.use_backend(backend):
        interpreter.round_to_nearest()
        return _detached(RUNS[operation](case, make_batch(case, dtype, device)))


def flushed(oracle: Tensor) -> Tensor:
    """Returns how far an element may be off because a power of 2 in it is 0: where that is no
    normal number of float32. An entropy's gradient multiplies it by its exponent, of up to 126."""
    largest = oracle.nan_to_num(0.0, 0.0, 0.0).abs().max()
    return 128 * torch.finfo(torch.float32).smallest_normal * (1 + largest)


def allowed(name: str, want: Expected, dtype: torch.dtype) -> Tensor:
    """Returns by how much each element of an output may be off, in float64."""
    oracle, inherited = want.oracle[name], want.inherited[name]
    ulp, eager = ulp_of(oracle, dtype), error_of(want.eager[name], oracle)
    units = torch.where(eager.isinf(), 0.0, eager / (ulp + inherited)).amax(-1, keepdim=True)
    bound = ulp + FLOOR_ULP * inherited + 2 * units * (ulp + inherited) + flushed(oracle)
    return bound.masked_fill(eager.isinf(), torch.inf)  # where eager overflows


def _worst(name: str, want: Expected, got: Tensor) -> Comparison:
    error, bound = error_of(got, want.oracle[name]), allowed(name, want, got.dtype)
    at = torch.where(bound.isinf(), 0.0, error / bound).argmax()
    eager = error_of(want.eager[name], want.oracle[name])
    return Comparison(name, *(x.flatten()[at].item() for x in (error, eager, bound)))


def _bias(name: str, want: Expected, got: Tensor) -> Comparison:
    """Returns the mean error away from 0 in ulps, over different elements that are normal."""
    oracle = want.oracle[name].flatten()
    exact, order = oracle.sort()
    eager, own = (x.detach().cpu().flatten()[order].double() for x in (want.eager[name], got))
    normal = exact.isfinite() & eager.isfinite()
    normal &= exact.abs() >= torch.finfo(got.dtype).smallest_normal
    # What may be 0 is rounded towards 0, by as many ulps as it has.
    normal &= exact.abs() >= 1024 * flushed(oracle)
    # Equal elements are rounded alike: together they are one draw.
    normal[1:] &= exact[1:] != exact[:-1]
    if not normal.any():
        return Comparison(f"{name} (bias)", 0.0, 0.0, 1.0)
    exact, own, eager, order = exact[normal], own[normal], eager[normal], order[normal]
    ulp = ulp_of(exact, got.dtype)
    # What is off by more than an ulp is for the bound of each element.
    means = (((x - exact) / ulp * exact.sign()).clamp(-1, 1).mean().abs() for x in (own, eager))
    (bias, eagers), inherited = means, (want.inherited[name].flatten()[order] / ulp).median()
    chance = SIGMAS * UNIFORM / len(exact) ** 0.5
    bound = 2 * eagers.item() + chance + FLOOR_ULP * inherited.item()
    return Comparison(f"{name} (bias)", bias.item(), eagers.item(), bound)


def judged(want: Expected, got: Outputs) -> Comparison:
    """Returns the comparison of the element, or of the mean, that comes nearest to its bound."""
    results = []
    for name, oracle in want.oracle.items():
        assert got[name].shape == oracle.shape and got[name].dtype == want.eager[name].dtype, name
        if oracle.numel():
            results += [_worst(name, want, got[name]), _bias(name, want, got[name])]
    return max(results, key=lambda c: c.error / c.bound if c.bound < torch.inf else 0.0,
               default=Comparison("(empty)", 0.0, 0.0, 0.0))  # fmt: skip


def compare(
    operation: str, case: Case, backend: str, dtype: torch.dtype, device: str
) -> Comparison:
    """Returns the comparison of what a backend makes of a case that comes nearest to its bound."""
    got = outputs(operation, case, backend, dtype, device)
    return judged(expected(operation, case, dtype, device), got)


def applicable(operation: str, case: Case, dtype: torch.dtype) -> bool:
    """Returns whether this combination says anything that another does not."""
    if case.about == "objective":
        return dtype == torch.float32 and operation in ("policy_loss", "token_objective")
    if operation == "group_advantage" and case != next(c for c in CASES if c.V == case.V):
        return False  # of a case it reads V alone
    if operation in VECTOR_OPERATIONS:
        return dtype == torch.float32 and case.V < 2000 and case.about == "everything"
    # In place has the bits of out of place: one of the two is enough in the narrow dtypes.
    return case.about == "everything" or dtype == torch.float32 or IN_PLACE in operation


def row(backend: str, operation: str, case: Case, dtype: torch.dtype, c: Comparison) -> str:
    """Returns one line of the conformance table."""
    kind = str(dtype).removeprefix("torch.")
    verdict = "ok" if c.passed else "FAILED"
    return (
        f"{backend:<12} {operation:<25} {case.name:<27} {kind:<9} {c.output:<18} "
        f"error {c.error:.2e}  eager {c.eager_error:.2e}  bound {c.bound:.2e}  {verdict}"
    )


def main() -> None:
    """Prints the conformance table of one backend on one device; exits with 1 if a line fails."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--backend", default="cpu", choices=NAMES)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    failed = count = 0
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for operation in RUNS:
                if not applicable(operation, case, dtype):
                    continue
                result = compare(operation, case, arguments.backend, dtype, arguments.device)
                print(row(arguments.backend, operation, case, dtype, result), flush=True)
                count, failed = count + 1, failed + (not result.passed)
    print(f"{count - failed} passed, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
