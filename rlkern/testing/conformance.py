# SPDX-License-Identifier: Apache-2.0
"""Compares a backend with the float64 reference, and its error with the reference's own.

The bound has no hand-picked tolerance: error ≤ 2 · (eager's error in the tested dtype) + a few ulp.
    python -m rlkern.testing.conformance --backend triton --device cuda
"""

import argparse
from typing import NamedTuple

import torch
from torch import Tensor

import rlkern
from rlkern.backends import MODULES, STEMS, _load
from rlkern.testing.cases import CASES, Case, make_batch
from rlkern.testing.runs import RUNS, VECTOR_OPERATIONS
from rlkern.testing.runs.inputs import Outputs

FLOOR_ULP = 4


class Comparison(NamedTuple):
    """The worst output of one operation: its error and what was allowed."""

    output: str
    error: float
    eager_error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


def _error(x: Tensor, oracle: Tensor) -> float:
    x, oracle = x.detach().double().cpu(), oracle.detach().cpu()
    same = (x == oracle) | (x.isnan() & oracle.isnan())
    return torch.where(same, 0.0, (x - oracle).abs().nan_to_num(torch.inf)).max().item()


def _scale(name: str, oracle: Outputs) -> float:
    # A loss is a sum of terms that may cancel; together they are as large as its gradient.
    terms = [x.abs().sum() for k, x in oracle.items() if name == "loss" and k.startswith("grad_")]
    finite = oracle[name][oracle[name].isfinite()].abs()
    largest = finite.max() if finite.numel() else torch.zeros(())
    return max([largest, *terms]).item()


def compare(
    operation: str, case: Case, backend: str, dtype: torch.dtype, device: str
) -> Comparison:
    """Returns the comparison of the output that comes nearest to its bound."""
    run = RUNS[operation]
    batch = make_batch(case, dtype, device)
    with rlkern.use_backend("eager"):
        oracle = run(case, batch.to("cpu", torch.float64))
        eager = run(case, batch)
    with rlkern.use_backend(backend):
        got = run(case, batch)
    results = []
    for name, expected in oracle.items():
        if not expected.numel():
            assert got[name].shape == expected.shape
            continue
        floor = FLOOR_ULP * torch.finfo(got[name].dtype).eps * _scale(name, oracle)
        eager_error = _error(eager[name], expected)
        bound = 2 * eager_error + floor
        results.append(Comparison(name, _error(got[name], expected), eager_error, bound))
    return max(results, key=lambda c: c.error / c.bound if c.bound else c.error,
               default=Comparison("(empty)", 0.0, 0.0, 0.0))  # fmt: skip


def applicable(operation: str, case: Case, dtype: torch.dtype) -> bool:
    """Returns whether this combination says anything that another does not."""
    if case.about == "objective":
        return dtype == torch.float32 and operation in ("policy_loss", "token_objective")
    if operation in VECTOR_OPERATIONS:
        return dtype == torch.float32 and case.V < 2000 and case.about == "everything"
    # In place has the bits of out of place: one of the two is enough in the narrow dtypes.
    return case.about == "everything" or dtype == torch.float32 or "in place" in operation


def serves(backend: str, operation: str) -> bool:
    """Returns whether a backend has the function; where it has none, the next backend serves."""
    stem = operation.split(" (")[0]
    return stem not in STEMS or hasattr(_load(backend)[0], stem)


def row(backend: str, operation: str, case: Case, dtype: torch.dtype, c: Comparison) -> str:
    """Returns one line of the conformance table."""
    kind = str(dtype).removeprefix("torch.")
    verdict = "ok" if c.passed else "FAILED"
    return (
        f"{backend:<7} {operation:<25} {case.name:<27} {kind:<9} {c.output:<13} "
        f"error {c.error:.2e}  eager {c.eager_error:.2e}  bound {c.bound:.2e}  {verdict}"
    )


def main() -> None:
    """Prints the conformance table of one backend on one device; exits with 1 if a line fails."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--backend", default="cpu", choices=tuple(MODULES))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    failed = count = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for operation in (name for name in RUNS if serves(arguments.backend, name)):
            for case in CASES:
                if not applicable(operation, case, dtype):
                    continue
                result = compare(operation, case, arguments.backend, dtype, arguments.device)
                print(row(arguments.backend, operation, case, dtype, result), flush=True)
                count, failed = count + 1, failed + (not result.passed)
    print(f"{count - failed} passed, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
