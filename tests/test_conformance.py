# SPDX-License-Identifier: Apache-2.0
"""Every backend × operation × case against float64, next to eager's own error."""

import os

import pytest
import torch
from backend_helpers import CHOSEN, skipping_what_is_absent
from isa_helpers import InstructionSet, instruction_sets

import rlkern
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.testing import conformance
from rlkern.testing.cases import CASES, Case, make_batch
from rlkern.testing.conformance import RUNS, applicable, compare, expected, flushed, judged, row

pytestmark = pytest.mark.conformance
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = [name for name in CHOSEN if name != "eager"]
# The chosen instruction set runs as the backend "cpu"; the others each in a process of their own.
OTHER_SETS = [name for name in instruction_sets() if "cpu" in BACKENDS][1:]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What every backend is compared with is computed once, so the backend varies fastest.
# `make gpu` runs what a GPU serves; the backends of a processor have been tested without one.
ON_GPU = {name: [pytest.mark.gpu] for name in BACKENDS if name != "cpu" and DEVICE == "cuda"}
COMBINATIONS = [
    pytest.param(
        operation, case, backend, id=f"{backend}-{operation}-{case}", marks=ON_GPU.get(backend, [])
    )
    for case in CASES
    for operation in RUNS
    if any(applicable(operation, case, dtype) for dtype in DTYPES)
    for backend in [*BACKENDS, *(f"cpu:{name}" for name in OTHER_SETS)]
]


@pytest.fixture(scope="module")
def elsewhere():
    """Returns what runs an operation with an instruction set other than the chosen one."""
    sets = {name: InstructionSet(name) for name in OTHER_SETS}
    yield sets
    for one in sets.values():
        one.close()


def _device(backend: str) -> str:
    return "cpu" if backend.startswith("cpu") else DEVICE


@pytest.mark.parametrize("operation,case,backend", COMBINATIONS)
def test_the_error_is_at_most_twice_eagers_own(
    backend, operation, case, elsewhere, poisoned_memory, conformance_table
):
    name, _, isa = backend.partition(":")
    run = elsewhere[isa].outputs if isa else conformance.outputs
    for dtype in DTYPES:
        if applicable(operation, case, dtype):
            with skipping_what_is_absent():
                got = run(operation, case, name, dtype, _device(backend))
            result = judged(expected(operation, case, dtype, _device(backend)), got)
            line = row(backend, operation, case, dtype, result)
            conformance_table(line)
            assert result.passed, line


@pytest.mark.skipif(not OTHER_SETS, reason="there is no second instruction set here")
def test_each_instruction_set_runs_in_its_own_process(elsewhere):
    assert [one.chosen() for one in elsewhere.values()] == OTHER_SETS


def _by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def _planted(fault, name: str, dtype: torch.dtype, operation: str = "token_logprob"):
    """Returns the comparison of eager's results after a fault has changed their gradient."""
    case = _by_name(name)
    want = expected(operation, case, dtype, "cpu")
    batch = make_batch(case, dtype)
    spoiled = fault(want.eager["grad_logits"].clone(), want.oracle["grad_logits"], batch.token)
    return judged(want, {**want.eager, "grad_logits": spoiled})


def _only_the_token(grad, oracle, token):
    return torch.zeros_like(grad).scatter(-1, token[..., None], grad.gather(-1, token[..., None]))


def _truncated(grad, oracle, token):
    """Returns the exact gradient rounded towards 0, as a store that drops the low half does."""
    bits = oracle.float().contiguous().view(torch.int32) & -(2**16)
    return bits.view(torch.float32).to(grad.dtype)


def _one_element(grad, oracle, token):
    """Returns the gradient with an error of 10⁻³ in its smallest element that is normal."""
    size = oracle.abs()
    at = torch.where(size > 1024 * flushed(oracle), size, torch.inf).argmin()
    grad.view(-1)[at] *= 1 + 1e-3
    return grad


@pytest.mark.parametrize("name", ("characters", "gpt2", "verl_trap", "qwen", "gemma"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_of_the_token_only_is_seen(name, dtype):
    assert not _planted(_only_the_token, name, dtype).passed
    assert _planted(lambda grad, *_: grad, name, dtype).passed


@pytest.mark.parametrize("name", ("characters", "gpt2", "gemma", "all_terms"))
def test_a_store_that_truncates_is_seen(name):
    assert not _planted(_truncated, name, torch.bfloat16).passed


# The smallest of token_logprob is what cancels in p·(a + b·log p), which eager gets wrong, too.
@pytest.mark.parametrize("name", ("characters", "qwen", "gemma", "wide"))
def test_an_error_of_a_thousandth_in_the_smallest_element_is_seen(name):
    assert not _planted(_one_element, name, torch.float32, "policy_loss").passed


@pytest.mark.sanitize
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("operation", RUNS)
def test_small_cases_touch_only_their_own_memory_on_a_gpu(operation):
    for case in CASES:
        if case.V < 1100 and applicable(operation, case, torch.bfloat16):
            compare(operation, case, "triton", torch.bfloat16, DEVICE)


@pytest.mark.skipif(
    os.environ.get("RLKERN_BUILD") == "none" and not BACKENDS,
    reason="nothing was built, as asked for, and there is no Triton",
)
def test_there_is_a_native_backend_to_compare():
    assert BACKENDS, "neither the C++ extension nor Triton can serve here: nothing was compared"


def test_the_formula_of_every_algorithm_and_every_kl_estimator_has_a_case():
    found = [find_algorithm(case.algorithm) for case in CASES]
    of_answers = [find_algorithm(n) for n, a in rlkern.offline_algorithms().items() if a.gate]
    expected = {(a.gate, a.level) for a in (*rlkern.algorithms().values(), *of_answers)}
    assert {(a.gate, a.level) for a in found} == expected
    named = {case.coefficients.get("kl_estimator") for case in CASES}
    assert named >= set(KL_ESTIMATORS)
    assert len({case.name for case in CASES}) == len(CASES)
