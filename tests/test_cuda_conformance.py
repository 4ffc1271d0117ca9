# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels, in an emulator on the CPU and on a GPU, against float64."""

import pytest
import torch
from cuda_helpers import check, needs_compiler, served

from rlkern.backends import cuda
from rlkern.testing.cases import CASES
from rlkern.testing.conformance import applicable, compare


@needs_compiler
@pytest.mark.conformance
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operation", ["policy_loss (in place)", "token_logprob"])
def test_the_error_is_at_most_twice_eagers_own(operation, dtype, emulated, poisoned_memory):
    cases = [case for case in CASES if served(case) and applicable(operation, case, dtype)]
    check(operation, cases, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.conformance
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operation", ["policy_loss", "policy_loss (in place)", "token_logprob"])
def test_a_gpu_computes_what_the_reference_does(operation, dtype, poisoned_memory):
    if cuda.unavailable():
        pytest.skip(cuda.unavailable())
    cases = [case for case in CASES if served(case) and applicable(operation, case, dtype)]
    check(operation, cases, dtype, "cuda")


@pytest.mark.sanitize
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("operation", ["policy_loss", "policy_loss (in place)", "token_logprob"])
def test_small_cases_touch_only_their_own_memory_on_a_gpu(operation):
    if cuda.unavailable():
        pytest.skip(cuda.unavailable())
    for case in CASES:
        if served(case) and (case.V < 1100 or case.name in ("gpt2", "qwen")):
            compare(operation, case, "cuda", torch.bfloat16, "cuda")
