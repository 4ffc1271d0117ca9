# SPDX-License-Identifier: Apache-2.0
"""Every backend × operation × case against float64, next to eager's own error."""

import pytest
import torch

import rlkern
from rlkern.backends import ORDER, _load
from rlkern.reference.kl import KL_ESTIMATORS
from rlkern.testing.cases import CASES
from rlkern.testing.conformance import RUNS, applicable, compare, row, serves

pytestmark = pytest.mark.conformance
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = [name for name in ORDER if name != "eager" and _load(name)[1] is None]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMBINATIONS = [
    pytest.param(backend, operation, case, id=f"{backend}-{operation}-{case}")
    for backend in BACKENDS
    for operation in RUNS
    for case in CASES
    if serves(backend, operation)
    if any(applicable(operation, case, dtype) for dtype in DTYPES)
]


def _device(backend: str) -> str:
    return "cpu" if backend == "cpu" else DEVICE


@pytest.mark.parametrize("backend,operation,case", COMBINATIONS)
def test_the_error_is_at_most_twice_eagers_own(
    backend, operation, case, poisoned_memory, conformance_table
):
    for dtype in DTYPES:
        if applicable(operation, case, dtype):
            result = compare(operation, case, backend, dtype, _device(backend))
            line = row(backend, operation, case, dtype, result)
            conformance_table.append(line)
            assert result.passed, line


@pytest.mark.sanitize
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("operation", [name for name in RUNS if serves("triton", name)])
def test_small_cases_touch_only_their_own_memory_on_a_gpu(operation):
    for case in CASES:
        if case.V < 1100 and applicable(operation, case, torch.bfloat16):
            compare(operation, case, "triton", torch.bfloat16, DEVICE)


def test_there_is_a_native_backend_to_compare():
    assert BACKENDS, "neither the C++ extension nor Triton can serve here: nothing was compared"


def test_the_formula_of_every_algorithm_and_every_kl_estimator_has_a_case():
    declared = rlkern.algorithms()
    formulas = {(declared[c.algorithm].gate, declared[c.algorithm].level) for c in CASES}
    assert formulas == {(a.gate, a.level) for a in declared.values()}
    named = {case.coefficients.get("kl_estimator") for case in CASES}
    assert named >= set(KL_ESTIMATORS)
    assert len({case.name for case in CASES}) == len(CASES)
