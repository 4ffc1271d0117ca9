# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels, executed: against float64, and for races, bounds and what nobody wrote.

Triton's interpreter runs the kernels as they are written; here runs what Triton made of them for
GPUs that are not there. A fault of the machine (ptx_emulator) is an exception, a race a line.
"""

import doctest

import pytest

pytest.importorskip("triton")
from ptx_emulator import compare, direct, launches

from rlkern.testing.runs import RUNS

TARGETS = ("sm_80", "sm_90")
# Rows of several blocks are block_plus_one, blocks_minus_one, minus_infinity and all_terms.
CASES = {
    ("token_logprob", "float32"): (
        "vector_minus_one", "keep_without_token", "softcap_minus_infinity", "no_rows"),
    ("token_logprob", "bfloat16"): ("block", "garbage_under_mask"),
    ("token_logprob", "float16"): ("minus_infinity",),
    ("token_logprob_companions", "float32"): ("vector_minus_one", "keep_without_token"),
    ("token_logprob_companions", "bfloat16"): (
        "block_plus_one", "blocks_minus_one", "garbage_under_mask"),
    ("token_logprob (in place)", "float32"): ("one_logit", "time_slice"),
    ("token_logprob (in place)", "bfloat16"): (
        "block_plus_one", "blocks_minus_one", "minus_infinity", "temperature_per_row",
        "keep_slice_temperature"),
    ("token_logprob (in place)", "float16"): ("padded_vocabulary", "keep_whole"),
    ("policy_loss", "float32"): ("on_policy", "no_tokens", "terms_garbage"),
    ("policy_loss", "bfloat16"): ("block_plus_one", "padded_vocabulary"),
    ("policy_loss", "float16"): ("vector_minus_one", "time_slice", "temperature_per_row"),
    ("policy_loss (in place)", "float32"): ("block_plus_one", "all_terms"),
    ("policy_loss (in place)", "bfloat16"): (
        "blocks_minus_one", "characters", "minus_infinity", "nothing_counted", "garbage_under_mask",
        "softcap_keep_everything"),
    ("policy_loss (in place)", "float16"): ("minus_infinity", "keep_narrow"),
    ("token_objective", "float32"): (
        "terms_packed", "sequence_cispo", "product_grpo"),
    ("gae", "float32"): ("characters", "block_plus_one"),
    ("reverse_scan", "float32"): ("characters", "block"),
    ("group_advantage", "float32"): ("temperature",),
    ("value_loss", "float32"): ("garbage_under_mask",),
    ("returns", "float32"): ("temperature",),
}  # fmt: skip
# Of these so many variants are compiled that one target, on which they differ little, must do.
ONE_TARGET = ("token_objective", "group_advantage", "value_loss", "returns", "float16")
COMPARISONS = [
    pytest.param(operation, kind, target, id=f"{operation}-{kind}-{target}")
    for operation, kind in CASES
    for target in (TARGETS[1:] if operation in ONE_TARGET or kind in ONE_TARGET else TARGETS)
]
# Which part of the bytes fetched is used, at least: of rows that begin at 16 bytes, and of others.
USED = {
    "token_logprob_forward": (0.9, 0.7),
    "companion_forward": (0.9, 0.7),
    "token_logprob_backward_kernel": (0.9, 0.7),
    "policy_loss_kernel": (0.9, 0.7),
    "scale_kernel": (0.9, 0.7),
    "scale_rows_kernel": (0.9, 0.7),
    "reverse_scan_kernel": (0.9, 0.9),
    "gae_kernel": (0.9, 0.9),
    "value_loss_kernel": (0.2, 0.2),
    "token_objective_kernel": (0.2, 0.2),
    "sum_statistics": (0.2, 0.2),
    "sum_value_blocks": (0.8, 0.8),
}
# Of every second barrier of a kernel, taken out alone, so many are missed at least; the others
# stand beside another one, or order what one thread does.
NEEDED = {
    "token_logprob_backward_kernel": (direct.backward_in_place, 1.0),
    "policy_loss_kernel": (direct.loss_in_place, 0.6),
}


@pytest.fixture(scope="module")
def elsewhere(pytestconfig, tmp_path_factory):
    """Returns the process that compiles and executes; all workers, and the next run, share what it
    compiles, which has no machine code and is therefore kept apart from Triton's own cache."""
    cache = getattr(pytestconfig, "cache", None)  # None where its plugin is off
    make = tmp_path_factory.mktemp if cache is None else cache.mkdir
    process = compare.Elsewhere(make("triton-ptx"))
    yield process
    process.close()


@pytest.mark.parametrize("operation,kind,target", COMPARISONS)
def test_compiled_kernels_are_right_and_without_races(
    operation, kind, target, elsewhere, emulation_table
):
    names = CASES[operation, kind]
    results = [elsewhere.run(compare.compare, operation, name, kind, target) for name in names]
    races = [race for result in results for race in result.races]
    name, worst = max(zip(names, results), key=lambda pair: pair[1].share_of_bound)
    sectors, used = (max(getattr(r, field) for r in results) for field in ("sectors", "used"))
    c = worst.comparison
    emulation_table(
        f"{operation:<25} {kind:<9} {target}  cases {len(names)}  "
        f"error {c.error:.2e}  bound {c.bound:.2e} ({c.output}, {name})  races {len(races)}  "
        f"sectors a request ≤ {sectors:.1f}, of their bytes used ≤ {used:.0%}"
    )
    assert not races
    for name, result in zip(names, results):
        assert result.comparison.passed, (name, result.comparison)


def test_every_operation_is_executed():
    assert {operation for operation, _ in CASES} == set(RUNS)
    kinds = {kind for operation, kind in CASES if operation == "policy_loss (in place)"}
    assert kinds == {"float32", "bfloat16", "float16"}


def test_bad_inputs_make_what_the_reference_makes(elsewhere):
    assert elsewhere.run(direct.differences, "sm_90") == []


def test_a_token_outside_the_vocabulary_has_no_logprob(elsewhere):
    *outside, (inside,) = elsewhere.run(direct.tokens_outside, "sm_90")
    assert all(x != x for (x,) in outside) and inside < 0


def test_logits_that_nobody_has_written_are_not_read_in_silence(elsewhere):
    fault = elsewhere.run(direct.fault_of_fresh_logits, "sm_90")
    assert "token_logprob_forward" in fault and "logits_ptr+" in fault and "nobody wrote" in fault


def test_rows_far_apart_have_the_bits_of_rows_side_by_side(elsewhere):
    assert elsewhere.run(direct.far_rows_are_the_same, "sm_90")


def test_rows_that_begin_at_no_multiple_of_16_bytes_are_read_narrowly(elsewhere):
    assert elsewhere.run(compare.rows_at_odd_addresses, "sm_90") == []


def test_few_long_sequences_are_scanned_in_parts(elsewhere):
    error, own = elsewhere.run(direct.long_scan_errors, "sm_90")
    assert error <= 2 * own


def test_the_bits_of_a_scan_depend_on_no_access(elsewhere):
    assert elsewhere.run(direct.packed_scans_are_the_same, "sm_90")


@pytest.mark.parametrize("kernel", NEEDED)
def test_a_barrier_that_is_taken_out_is_missed(kernel, elsewhere):
    launch, share = NEEDED[kernel]
    found = elsewhere.run(compare.without_barriers, launch, kernel)
    assert sum(missed for _, missed in found) >= share * len(found) > 0, found


@pytest.mark.parametrize("kind,V,column", (("bfloat16", 8192, 0), ("bfloat16", 8193, 1)))
def test_what_is_fetched_is_used(kind, V, column, elsewhere):
    used = elsewhere.run(compare.used_bytes, kind, V)
    print(used)
    assert {name: x for name, x in used.items() if x < USED[name][column]} == {}


@pytest.mark.parametrize("module", (launches, direct, compare))
def test_the_examples_of_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0
