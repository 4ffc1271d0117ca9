# SPDX-License-Identifier: Apache-2.0
"""Instructions of compiled kernels: how they are counted, and that the committed counts hold."""

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
from benchmarks import instructions  # noqa: E402
from rlkern.testing import sass  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
# Rows, and in them two sweeps; the branch to itself fills the end of the code.
SASS = """
    /*0000*/                   LDG.E R2, desc[UR4][R2.64] ;         /* 0x00 */
    /*0010*/               @P0 LDG.E.128 R4, desc[UR4][R2.64] ;     /* 0x00 */
                                                                    /* 0x01 */
    /*0020*/                   MUFU.EX2 R7, R7 ;                    /* 0x00 */
    /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;        /* 0x00 */
    /*0040*/              @!P1 BRA 0x60 ;                           /* 0x00 */
    /*0050*/                   SHFL.BFLY PT, R8, R7, 0x10, 0x1f ;   /* 0x00 */
    /*0060*/              @!P2 BRA 0x10 ;                           /* 0x00 */
    /*0070*/                   LDGSTS.E.BYPASS.64 [R7], [R4.64] ;   /* 0x00 */
    /*0080*/              @!P3 STG.E.EF.U16 desc[UR8][R8.64], R4 ;  /* 0x00 */
    /*0090*/              @!P6 BRA 0x70 ;                           /* 0x00 */
    /*00a0*/                   BRA 0x0 ;                            /* 0x00 */
    /*00b0*/                   BRA 0xb0;                            /* 0x00 */
"""


def test_the_innermost_loops_are_counted():
    first, second = sass.loops(SASS)
    assert first == sass.Loop(6, 1, 1, 1, (16,), ())
    assert second == sass.Loop(3, 0, 0, 0, (8,), (2,))


@pytest.mark.parametrize("module", (instructions, sass))
def test_the_examples_hold(module):
    assert doctest.testmod(module).failed == 0


def row(**changed):
    where = dict(zip(instructions.IDENTITY, ("k", "3", "sm_90", "float32", 8, 0)))
    return {**where, "instructions_per_element": 9.0, **changed}


def test_a_count_that_is_not_the_committed_one_is_named():
    before = {instructions.key(r): r for r in (row(), row(triton="2"), row(target="sm_80"))}
    assert instructions.differences([row()], before) == []
    (more,) = instructions.differences([row(instructions_per_element=10.0)], before)
    assert "'instructions_per_element': 9.0" in more and "10.0" in more
    assert len(instructions.differences([row(loop=1)], before)) == 2  # a new one, and one gone


def test_each_kernel_over_the_vocabulary_is_counted_on_each_target():
    found = {(r["kernel"], r["target"]) for r in instructions.committed().values()}
    names = [*instructions.KERNELS, *(name + instructions.MARK for name in instructions.CAPPED)]
    assert found == {(name, target) for name in names for target in instructions.TARGETS}


def test_the_sweeps_take_few_instructions_an_element():
    for row in instructions.committed().values():
        sweep = row["kernel"] in ("policy_loss_kernel", "token_logprob_backward_kernel")
        if sweep and row["V"] % 8 == 0:
            assert row["instructions_per_element"] <= 10, row
        if row["kernel"].endswith(instructions.MARK):
            assert row["instructions_per_element"] <= 40, row


def test_the_committed_counts_hold():
    versions = {r["triton"] for r in instructions.committed().values()}
    if triton.__version__ not in versions:
        pytest.skip(f"the committed counts are of Triton {versions}: each compiles its own code")
    env = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.instructions", "--check", "sm_90"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
