# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled for GPUs that are not there, in processes without the interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "\n".join(p.read_text() for p in (ROOT / "kernels" / "triton").glob("*.py"))
KERNELS = set(re.findall(r"(\w+)\[\(", SOURCES))


def python(*arguments: str, spills: bool = False) -> str:
    """Returns what a fresh Python process without the interpreter prints; spills make it fail."""
    env = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=env
    )
    assert done.returncode in (0, int(spills)), done.stdout + done.stderr
    return done.stdout


def number(words: list[str], name: str) -> int:
    """Returns the number that stands behind a word."""
    return int(words[words.index(name) + 1])


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_no_kernel_spills_registers_on(target):
    table = python("-m", "rlkern.testing.aot", target, spills=True)
    print(table)
    lines = [line.split() for line in table.splitlines()[:-1]]
    assert {words[1] for words in lines} == KERNELS
    for words in lines:
        # Where a whole row is swept by one warp, and with a softcap, gfx942 keeps masks in memory.
        assert number(words, "spills") <= (36 if target == "gfx942" and "kept" in words else 0), (
            words
        )
    long_rows = [words for words in lines if "V=151936" in words and words[1] != "sum_statistics"]
    assert {words[2] for words in long_rows} == {"bfloat16", "float32"}
    # Of 65 536 registers and programs of 256 threads: three programs per multiprocessor, two of
    # companions, one of kept sets, which leave little to read.
    for words in long_rows:
        most = 255 if "kept" in words else 128 if words[1] == "companion_forward" else 80
        assert number(words, "registers") <= most and number(words, "shared") <= 2048, words


WIDE = """
import re, torch
from rlkern.testing.aot import compiling, launch_rows
for dtype in (torch.bfloat16, torch.float32):
    for V in (151936, 151928, 4096):
        with compiling("sm_90") as compiled:
            launch_rows(dtype, V)
        for name, kernel in compiled:
            if name != "sum_statistics":
                ptx = kernel.asm["ptx"]
                widths = re.findall(r"(?:ld|st)\\.global\\S*?\\.(v4\\.b32|b16)\\b", ptx)
                wide = widths.count("v4.b32") + len(re.findall(r"cp\\.async\\.\\S+ .*, 0x10,", ptx))
                print(name, dtype, V, wide, widths.count("b16"))
"""


BARRIER = """
import torch
from rlkern.testing.aot import compiling, launch_rows
with compiling("sm_90") as compiled:
    launch_rows(torch.bfloat16, 151936)
ptx = {name: kernel.asm["ptx"] for name, kernel in compiled}["token_logprob_backward_kernel"]
own_logit = ptx.index("ld.global.b16")
print(own_logit < ptx.index("bar", own_logit) < ptx.index("st.global"))
"""


def test_the_token_logit_is_read_by_all_warps_before_any_overwrites_it():
    assert python("-c", BARRIER).strip() == "True"


def test_aligned_rows_are_read_and_written_sixteen_bytes_at_a_time():
    lines = [line.split() for line in python("-c", WIDE).splitlines()]
    assert len(lines) == 36
    for name, dtype, V, wide, narrow in lines:
        # The token's logit, and its gradient.
        own = {
            "scale_kernel": 0,
            "scale_rows_kernel": 0,
            "token_logprob_backward_kernel": 2,
            "policy_loss_kernel": 2,
        }
        single = own.get(name, 1) if dtype == "torch.bfloat16" else 0
        assert int(wide) >= 2 and int(narrow) == single, (name, dtype, V, wide, narrow)


COUNT = """
import torch
from rlkern.backends import triton as kernels
from rlkern.backends.eager.token_logprob import Softmax
from rlkern.backends.eager.token_objective import Objective, Rows
from rlkern.testing.aot import USUAL_ROWS, counting_variants, launch_formulas, launch_rows

with counting_variants() as variants:
    launch_rows(torch.bfloat16, 9216)
    launch_rows(torch.bfloat16, 9216, K=20)
    launch_formulas()
    first = sorted(set(variants))
    print(len(variants), *first)
    for B, T, V, coef in ((1, 1, 9216, 0.0), (16, 1, 9216, 1.0), (1, 16, 9216, 0.2),
                          (5, 7, 16384, -1.0), (3, 1000, 9216, 0.1), (1, 3, 12288, 1e-30)):
        launch_rows(torch.bfloat16, V, B, T, coef)
        launch_rows(torch.bfloat16, V, B, T, coef, K=T)
    for T, coef in ((1, 0.0), (16, 1.0), (48, 0.5)):
        launch_formulas(T, coef)
    odd = torch.zeros(1, 8)[:, 1:]  # vectors that are not aligned to 16 bytes
    token, z = torch.zeros(8, dtype=torch.int64)[1:][None], torch.zeros(1, 7, 9216).bfloat16()
    objective = Objective("ppo_clip", "token", "k3", (0, 1, 2, 3), 1, 0)
    rows = Rows(*[odd] * USUAL_ROWS)
    kernels.policy_loss(z, token, rows, Softmax(odd), objective, z)
    for gate, kl, level, offset in (("reinforce", "k1", "token", None),
                                    ("importance", "k2", "sequence", torch.arange(0, 8, 7))):
        objective = Objective(gate, level, kl, (0, 1, 2, 3), 1, 0)
        kernels.token_objective(odd, odd, rows, offset, objective)
    kernels.reverse_scan(torch.zeros(9, 16), torch.zeros(9, 16))
    print(len(variants))
"""


def test_no_length_batch_coefficient_or_alignment_of_a_vector_recompiles():
    first, after = python("-c", COUNT).splitlines()
    count, *names = first.split()
    assert set(names) == KERNELS
    assert after == count
