# SPDX-License-Identifier: Apache-2.0
"""The pipeline of the policy loss for long rows, by the emulator or on a GPU.

The emulator has room for two clusters, so that few rows fill the stages of a pipeline more than
once.
"""

from dataclasses import replace

import pytest
import torch
from batch_helpers import loss_and_gradient, same_bits
from cuda_helpers import needs_compiler

import rlkern
from rlkern.backends.cuda.library import load_library
from rlkern.testing.cases import CASES, make_batch
from rlkern.testing.conformance import expectation, judged, outputs

V = 16391  # of 16 bits just long enough for a pipeline, and odd
BY_NAME = {case.name: case for case in CASES}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = (
    "time_slice", "padded_vocabulary", "offset", "wide", "confident", "minus_infinity",
    "entropy_minus_infinity", "garbage_under_mask", "nothing_counted", "temperature_per_row",
    "all_terms", "softcap_wide", "softcap_minus_infinity", "softcap_temperature_entropy",
    "terms_garbage", "no_rows",
)  # fmt: skip


def batch_of(rows: int, device: str, dtype: torch.dtype = torch.bfloat16, width: int = V):
    case = replace(BY_NAME["all_terms"], B=1, T=rows, V=width, mask="full")
    return make_batch(case, dtype, device)


@pytest.mark.conformance
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_rows_of_every_kind_are_as_the_reference_has_them(dtype, device, poisoned_memory):
    cases = [replace(BY_NAME[kind], V=V) for kind in KINDS]
    cases.append(replace(BY_NAME["all_terms"], V=V, B=3, T=5, mask="full"))
    for case in cases:
        want = expectation("policy_loss", case, dtype, device)
        for operation in ("policy_loss", "policy_loss (in place)"):
            result = judged(want, outputs(operation, case, "cuda", dtype, device))
            assert result.passed, (operation, case, result)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 15])
def test_a_pipeline_has_the_bits_of_blocks_of_one_row_each(rows, dtype, emulated, monkeypatch):
    batch, runs = batch_of(rows, "cpu", dtype), []
    with rlkern.use_backend("cuda"):
        for index in ("0", "8"):  # with clusters, and so with pipelines, and without
            monkeypatch.setenv("RLKERN_CUDA_EMULATED_DEVICE", index)
            runs += [loss_and_gradient(batch, inplace=inplace) for inplace in (False, True)]
    assert all(same_bits(runs[0], run) for run in runs[1:])


def test_rows_without_weight_leave_the_others_as_they_are_wherever_they_lie(device):
    rows = 9 if device == "cpu" else 1200
    batch, one = batch_of(rows, device), torch.eye(rows, device=device, dtype=torch.bool)
    half = torch.arange(rows, device=device) < rows // 2
    masks = [*one[:9], *~one[:9], half, ~half, torch.ones_like(half)]
    masks.append(torch.arange(rows, device=device) % 3 == 0)
    runs = []
    with rlkern.use_backend("cuda"):
        for mask in masks:
            leaf = batch.logits.detach().clone()
            leaf[:, ~mask] = torch.nan  # not read
            leaf.requires_grad_()
            out = rlkern.policy_loss(
                leaf * 1, batch.token, batch.advantage, mask[None], weight=mask[None] * 0.5,
                inplace=True, entropy_coef=0.1, algorithm="grpo",
            )  # fmt: skip
            out.loss.backward()
            runs.append(leaf.grad)
    full = runs[-2]
    assert full.isfinite().all() and full.any(-1).all()
    for mask, grad in zip(masks, runs):
        assert torch.equal(grad, full * mask[:, None])


@needs_compiler
@pytest.mark.parametrize("width", [V, 50257])
def test_the_order_of_the_threads_of_a_pipeline_does_not_change_a_bit(width, emulated):
    batch, runs = batch_of(9, "cpu", width=width), []
    for forwards in (0, 1):
        load_library().emulator_begin(forwards)
        with rlkern.use_backend("cuda"):
            runs.append(loss_and_gradient(batch, inplace=True))
    assert same_bits(*runs)


@pytest.mark.parametrize("width", [50257, 151936])
def test_the_loss_has_the_same_bits_with_and_without_a_gradient(width, device):
    batch = batch_of(3, device, width=width)
    with rlkern.use_backend("cuda"):
        with_gradient = loss_and_gradient(batch)
        with torch.no_grad():
            alone = rlkern.policy_loss(
                batch.logits, batch.token, batch.advantage, batch.mask, **batch.rows,
                **batch.softmax,
            )  # fmt: skip
            again = rlkern.policy_loss(
                batch.logits.clone().requires_grad_(), batch.token, batch.advantage, batch.mask,
                **batch.rows, **batch.softmax,
            )  # fmt: skip
    assert torch.equal(alone.metrics, again.metrics) and with_gradient[0].isfinite()
