# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels as nvcc compiles them for sm_80, executed: against float64, and for races.

The emulator of test_cuda_kernels.py runs their source, with the host's exponentials; here runs what
a GPU would: its own, and its own approximations, rounded correctly.
"""

import hashlib
import os
import re

import pytest
import torch
from cuda_helpers import ROOT, SOURCES, needs_compiler, served
from ptx_emulator import inputs, native

from rlkern.backends import cuda, eager
from rlkern.backends.eager.token_logprob import Softmax
from rlkern.testing.cases import CASES
from rlkern.testing.conformance import applicable, expected, judged, outputs

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(not native.NVCC, reason="nvcc is not installed"),
]
BY_NAME = {case.name: case for case in CASES}
# Of the loss in float32 every case that fits: each formula has one.
LONGEST = 9000
SOME = {
    ("policy_loss", "float16"): ("vector_minus_one", "time_slice", "temperature_per_row", "wide"),
    ("policy_loss (in place)", "float32"): ("block_plus_one", "all_terms", "softcap"),
    ("policy_loss (in place)", "bfloat16"): (
        "characters", "minus_infinity", "nothing_counted", "garbage_under_mask", "confident",
        "padded_vocabulary", "softcap_temperature_entropy"),
    ("policy_loss (in place)", "float16"): ("entropy_minus_infinity", "softcap_wide"),
    ("token_logprob", "float32"): (
        "one_logit", "time_slice", "vector_minus_one", "offset", "softcap_minus_infinity",
        "garbage_under_mask", "no_rows"),
    ("token_logprob", "bfloat16"): ("block_plus_one", "padded_vocabulary", "confident"),
    ("token_logprob", "float16"): ("minus_infinity", "softcap_temperature_entropy"),
}  # fmt: skip


# Of the barriers of a kernel, each taken out alone, so many are missed; the others are those at
# which the blocks of a cluster meet.
NEEDED = {
    "policy_loss_kernelI13__nv_bfloat16Lb0": (inputs.loss, 4),
    "token_logprob_forwardI13__nv_bfloat16Lb0": (inputs.scored, 2),
    "token_logprob_backwardI13__nv_bfloat16Lb0": (inputs.scored, 2),
    "sum_statistics": (inputs.loss, 1),
}


def names_of(operation: str, kind: str) -> tuple[str, ...]:
    """Returns the names of the cases that are executed."""
    dtype = getattr(torch, kind)
    if (operation, kind) in SOME:
        return SOME[operation, kind]
    fitting = (case for case in CASES if served(case) and case.V <= LONGEST)
    return tuple(case.name for case in fitting if applicable(operation, case, dtype))


@pytest.fixture(scope="module")
def ptx(pytestconfig, tmp_path_factory):
    """Returns the PTX of all kernels; all workers, and the next run, share what is compiled."""
    folder = tmp_path_factory.mktemp("nvcc")
    cache = getattr(pytestconfig, "cache", None)  # None where its plugin is off
    sources = b"".join(path.read_bytes() for path in sorted(ROOT.glob("csrc/**/*.*")))
    digest = hashlib.sha256(sources + native.version().encode()).hexdigest()
    kept = (cache.mkdir("nvcc-ptx") if cache else folder) / f"{digest}.ptx"
    if not kept.exists():
        os.replace(native.compiled(SOURCES, ROOT / "csrc", folder), kept)
    return kept.read_text()


@pytest.fixture
def library(emulated, monkeypatch):
    """Makes the cuda backend launch what it would on an sm_80."""
    monkeypatch.setenv("RLKERN_CUDA_EMULATED_DEVICE", "8")


@pytest.mark.parametrize(
    "operation,kind", [pytest.param("policy_loss", "float32", marks=pytest.mark.slow), *SOME]
)
def test_what_nvcc_compiles_is_right_and_without_races(
    operation, kind, ptx, library, emulation_table
):
    names, dtype, races, found = names_of(operation, kind), getattr(torch, kind), [], []
    for name in names:
        with native.emulated(ptx) as machine:
            got = outputs(operation, BY_NAME[name], "cuda", dtype, "cpu")
        races += machine.races.values()
        found.append(judged(expected(operation, BY_NAME[name], dtype, "cpu"), got))
    name, c = max(zip(names, found), key=lambda x: x[1].error / x[1].bound if x[1].bound else 0)
    emulation_table(
        f"{'CUDA C++ ' + operation:<34} {kind:<9} {native.TARGET}  cases {len(names)}  "
        f"error {c.error:.2e}  bound {c.bound:.2e} ({c.output}, {name})  races {len(races)}"
    )
    assert not races
    for name, comparison in zip(names, found):
        assert comparison.passed, (name, comparison)


def test_every_kernel_of_an_sm_80_is_executed(ptx, library):
    kernels = set(re.findall(r"\.visible \.entry (\w+)\(", ptx))
    pipelines = {name for name in kernels if "policy_loss_pipeline" in name}
    assert pipelines  # empty before sm_90
    executed = set()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for softcap in (0.0, 5.0):
            given = inputs.inputs(300, dtype=dtype)._replace(softmax=Softmax(None, softcap))
            with native.emulated(ptx) as machine:
                inputs.loss(cuda, given)
                inputs.scored(cuda, given)
                cuda.scale_(given.logits, torch.tensor(0.5))
            executed |= set(machine.traffic)
    assert executed == kernels - pipelines


def test_bad_inputs_make_what_the_reference_makes(ptx, library):
    found = []
    for bad in inputs.bad_rows():
        want = [x.clone() for x in bad.call(eager)]
        with native.emulated(ptx) as machine:
            got = bad.call(cuda)
        wrong = [n for n, (x, y) in enumerate(zip(got, want)) if inputs.unlike(x, y)]
        found += [f"{bad.name}: output {n}" for n in wrong]
        found += [f"{bad.name}: {race}" for race in machine.races.values()]
    assert found == []


@pytest.mark.parametrize("kernel", NEEDED)
def test_a_barrier_that_is_taken_out_is_missed(kernel, ptx, library):
    operation, needed = NEEDED[kernel]

    def races(text):
        given = inputs.inputs(4104, dtype=torch.bfloat16)
        with native.emulated(text) as machine:
            operation(cuda, given)
        return list(machine.races.values())

    assert not races(ptx)
    begin = re.search(rf"\.entry \w+{kernel}\w*\(", ptx).end()
    end = ptx.find(".entry", begin)
    barriers = re.compile(r"\bbar\.sync\s+0\b[^;]*;").finditer(ptx, begin, max(end, 0) or len(ptx))
    missed = [bool(races(ptx[: b.start()] + ptx[b.end() :])) for b in barriers]
    assert sum(missed) >= needed, missed
