# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic and the README's numbers; nothing here is timed."""

import doctest
import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

import rlkern
from benchmarks import (
    bench_calls,
    bench_policy_loss,
    bench_scans,
    page,
    promises,
    readme,
    report,
    run,
    tables,
)
from benchmarks import bench_linear_policy_loss as bench_linear
from rlkern.testing import baselines
from rlkern.testing.timed_inputs import GSPO, SOFTCAP, Inputs


def timings(rows: dict[str, float]) -> dict[str, report.Timing]:
    """Returns times without a spread."""
    return {name: report.Timing(x, x, x, x) for name, x in rows.items()}


WHERE = {"cpu": "C", "threads": 1, "isa": "I", "torch": "2", "date": "2026-01-02", "commit": "abc"}


@pytest.mark.parametrize(
    "path, block", ((readme.PAGE, page.numbers), (readme.README, readme.short))
)
def test_a_document_shows_the_committed_numbers_and_no_others(path, block):
    text = path.read_text(encoding="utf-8")
    assert text == readme.written(text, block()), "run python -m benchmarks.readme"


def test_the_table_of_the_readme_is_short():
    assert 3 < readme.short().partition("\n\n")[0].count("\n") <= 8


def with_examples() -> list[str]:
    """Returns the modules with examples; instructions has a test of its own, before Triton."""
    files = Path(report.__file__).parent.glob("*.py")
    found = {x.stem for x in files if "    >>> " in x.read_text(encoding="utf-8")}
    return sorted(f"benchmarks.{name}" for name in found - {"instructions"})


@pytest.mark.parametrize("name", ("rlkern.testing.baselines", *with_examples()))
def test_the_examples_of_a_module_hold(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0 and (found.attempted or "baselines" in name)


def test_a_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="must have a line"):
        readme.written("no marks here", "new")


def test_a_number_of_the_results_reaches_the_readme(tmp_path):
    rows = {"memcpy_of_the_logits": 10.0, "rlkern_in_place": 12.5, "eager": 300.0}
    times = {
        "policy_loss 512x151936 float32": timings(rows),
        "gae 8x4096": {"rlkern_gae": report.Timing(0.03217, 0.03, 0.04, 0.029)},
    }
    report.record(times, tmp_path / "cpu.jsonl", WHERE, complete=True)
    block = page.numbers(tmp_path)
    assert "| 512 × 151936 float32 | 10 | 12.5 | – | 300 | – | 24.0 |" in block
    assert "| rlkern in place / memcpy of the logits | goal | 1.25 (≤ 1.3) | – |" in block
    assert "| 8x4096 | 0.0322 (0.03–0.04) |" in block


def test_a_missed_bound_is_seen_in_the_readme(tmp_path):
    rows = timings({"memcpy_of_the_logits": 1.0, "rlkern_in_place": 3.0})
    times = {"policy_loss 512x151936 bfloat16": rows}
    report.record(times, tmp_path / "cpu.jsonl", WHERE, complete=True)
    assert page.numbers(tmp_path).count("3.00 (≤ 2.0) **missed**") == 1


def test_a_gpu_run_reaches_the_readme_with_its_goal(tmp_path):
    old, new = ({**WHERE, "commit": c, "device": "NVIDIA H200"} for c in "ab")
    judged = {"row": "rlkern_x", "ms": 0.5, "goal_ms": 0.58, "share_of_bound": 0.91}
    judged["shape"] = [8, 9]
    lines = [{**old, **judged, "ms": 7.0}, {**new, **judged}]
    (tmp_path / "h200.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert (
        page.numbers(tmp_path).splitlines()[-1] == "| rlkern x | 8 × 9 | 0.5 | 0.58 | 91% | – | – |"
    )
    assert "| 7 |" not in page.numbers(tmp_path)


@pytest.mark.parametrize("sign,ratio,held", (("<=", 2.0, True), ("<=", 2.01, False),
                                             (">=", 2.0, True), (">=", 1.99, False)))  # fmt: skip
def test_a_bound_is_held_on_its_own_side(sign, ratio, held):
    check = promises.Check("g", "a", "b", sign, 2.0, promised=True)
    assert check.ratio({"g": timings({"a": ratio * 4, "b": 4.0})}) == pytest.approx(ratio)
    verdict = promises.Verdict(check, ratio)
    assert verdict.held == held and verdict.broken != held
    assert str(verdict).startswith("held" if held else "MISSED ")


def test_a_goal_that_is_missed_is_printed_and_breaks_nothing():
    verdict = promises.Verdict(promises.Check("g", "a", "b", "<=", 1.0, promised=False), 1.5)
    assert str(verdict).startswith("MISSED (a goal)") and not verdict.broken


def test_what_was_not_measured_is_not_judged():
    times = {"policy_loss 512x151936 float32": timings({"rlkern_in_place": 1.0})}
    assert promises.verdicts(times) == []


def benchmarks_of_policy_loss() -> dict[str, set[str]]:
    """Returns {row: groups it is timed in}."""
    found: dict[str, set[str]] = {}
    for name, function in inspect.getmembers(bench_policy_loss, inspect.isfunction):
        if name.startswith("test_"):
            (mark,) = function.pytestmark
            pairs = {f"policy_loss {size} {dtype}" for size, dtype in mark.args[1]}
            found[name.removeprefix("test_")] = pairs
    return found


def benchmarks_of_all_shapes(module: ModuleType, groups: set[str]) -> dict[str, set[str]]:
    """Returns {row: groups} of a file whose every row is timed in every group."""
    tests = [n for n, _ in inspect.getmembers(module, inspect.isfunction) if n.startswith("test_")]
    return {name.removeprefix("test_"): groups for name in tests}


def all_benchmarks() -> dict[str, set[str]]:
    """Returns {row: groups it is timed in} of the files that checks are about."""
    timed = benchmarks_of_policy_loss()
    by_isa = {
        f"rlkern_in_place_{isa}": timed["rlkern_in_place"] for isa in (*run.NARROW_ISAS, "best")
    }
    linear = {
        f"linear_policy_loss {n}x{bench_linear.H}x{bench_linear.V} {dtype}"
        for n in (bench_linear.MAIN, *bench_linear.FEW)
        for dtype in bench_linear.DTYPES
    }
    found = timed | by_isa
    for rows in (
        benchmarks_of_all_shapes(bench_scans, {f"gae {s}" for s in bench_scans.SHAPES}),
        benchmarks_of_all_shapes(bench_linear, linear),
        *(
            {k: v for k, v in benchmarks_of_all_shapes(bench_calls, groups).items() if op in k}
            for op in ("policy_loss", "td_loss")
            for groups in [{f"calls {op} {size}" for size in bench_calls.SIZES}]
        ),
    ):
        found = {name: found.get(name, set()) | rows.get(name, set()) for name in found | rows}
    return found


@pytest.mark.parametrize("check", promises.CHECKS, ids=lambda c: f"{c.group} {c.above} {c.limit}")
def test_every_check_names_rows_that_are_timed(check):
    rows = all_benchmarks()
    assert check.group in rows[check.above] & rows[check.below]


def test_every_vocabulary_of_a_model_must_beat_torch_compile():
    checks = [check for check in promises.CHECKS if check.group.startswith("policy_loss")]
    faster = {check.group for check in checks if check.above == "torch_compile"}
    large = {group for group in benchmarks_of_policy_loss()["torch_compile"] if "x21 " not in group}
    assert faster == large


def test_no_size_is_larger_than_the_memory_of_a_small_machine():
    assert max(n * v for n, v in bench_policy_loss.SIZES.values()) <= 10**8


def test_every_row_the_readme_names_is_timed():
    timed = benchmarks_of_policy_loss().keys() | {f"rlkern_in_place_{x}" for x in run.NARROW_ISAS}
    named = {row for pair in tables.FORMS.values() for row in pair if row}
    assert named | set(tables.SIZE_COLUMNS.values()) <= timed


def test_the_median_counts_and_keeps_its_spread(tmp_path):
    rounds = [0.009, 0.002, 0.003, 0.001, 0.004, 0.005]
    entry = {"name": "test_eager[a-b]", "group": "g", "stats": {"mean": 9.0, "data": rounds}}
    (tmp_path / "x.json").write_text(
        json.dumps({"benchmarks": [entry | {"extra_info": {"work": 7}}]})
    )
    (timing,) = report.read(tmp_path / "x.json")["g"].values()
    assert timing == (3.5, 2.0, 5.0, 1.0, 7) and timing.rate == 2000


@pytest.mark.parametrize("now,fell", ((1.2, False), (1.4, True), (0.5, False)))
def test_a_ratio_that_falls_by_more_than_its_spread_is_said(now, fell):
    group, copy = "policy_loss 512x151936 float32", report.Timing(1.0, 1.0, 1.0, 1.0)

    def of(x: float) -> report.Times:
        ours = report.Timing(x, 0.9 * x, 1.1 * x, x)
        return {group: {"memcpy_of_the_logits": copy, "rlkern_in_place": ours}}

    assert bool(promises.fallen(of(now), of(1.0))) == fell
    assert promises.fallen(of(9.0), {}) == {}


def test_a_tree_with_changes_is_not_recorded(tmp_path):
    where = WHERE | {"commit": "abc-dirty"}
    with pytest.raises(ValueError, match="commit the changes first"):
        report.record({"g": timings({"a": 1.0})}, tmp_path / "cpu.jsonl", where, complete=True)
    assert not (tmp_path / "cpu.jsonl").exists()


def test_a_run_replaces_what_the_same_machine_left_and_nothing_else(tmp_path):
    path = tmp_path / "cpu.jsonl"
    other = WHERE | {"cpu": "another"}
    report.record({"g": timings({"a": 1.0}), "h": timings({"a": 2.0})}, path, WHERE, complete=True)
    report.record({"g": timings({"a": 3.0})}, path, other, complete=True)
    report.record({"g": timings({"a": 4.0})}, path, WHERE | {"commit": "def"}, complete=False)
    left = [(line["cpu"], line["group"], line["ms"]["a"][0]) for line in report.records(path)]
    assert left == [("C", "h", 2.0), ("another", "g", 3.0), ("C", "g", 4.0)]
    report.record({"g": timings({"a": 5.0})}, path, WHERE, complete=True)
    assert [line["group"] for line in report.records(path)] == ["g", "g"]
    assert page.latest(path)[1] == {"g": timings({"a": 5.0})}


def test_the_run_finds_every_file_of_benchmarks():
    files = {path.name for path in Path(report.__file__).parent.glob("bench_*.py")}
    assert {f"bench_{stem}.py" for stem in run.stems()} == files and "policy_loss" in run.stems()


def compared(baseline, *extra, **options):
    """Returns loss and gradient of rlkern and of a baseline in float32."""
    inputs = Inputs(16, 130, torch.float32)
    rows = (inputs.token, inputs.advantage, inputs.weight, inputs.old, inputs.ref)
    arguments = [inputs.keep if x == "keep" else x for x in extra]
    if "keep" in options:
        options["keep"] = inputs.keep
    for loss_of in (
        lambda logits: inputs.loss(logits, **options),
        lambda logits: baseline(logits, *rows, *arguments),
    ):
        leaf = inputs.source.clone().requires_grad_()
        loss = loss_of(leaf)
        loss.backward()
        yield loss.detach(), leaf.grad


@pytest.mark.parametrize("name,extra,options", (
    ("eager_grpo_loss", (), {}),
    ("eager_gspo_loss", (), GSPO),
    ("eager_kept_set_loss", ("keep",), {"keep": True}),
    ("eager_softcap_loss", (SOFTCAP,), {"softcap": SOFTCAP}),
))  # fmt: skip
def test_a_baseline_computes_what_the_fused_loss_computes(name, extra, options):
    (loss, grad), (expected, eager_grad) = compared(
        getattr(baselines, name), *extra, **dict(options)
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, eager_grad, atol=1e-6, rtol=1e-4)
    assert grad.abs().max() > 1e-3


def test_the_baseline_of_the_temporal_difference_loss_computes_it():
    transitions, found = bench_calls.Transitions(32, 6), []
    for loss_of in (lambda *x: rlkern.td_loss(*x).loss, baselines.eager_td_loss):
        transitions.learn(loss_of)
        found.append(transitions.q.grad)
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 1e-3


def test_the_kept_ids_differ_from_each_other():
    keep = Inputs(16, 130, torch.float32).keep
    assert all(len(set(ids)) == 64 for ids in keep.flatten(0, 1).tolist())


def test_the_baseline_of_the_scores_agrees():
    inputs = Inputs(16, 130, torch.float32)
    logprob, entropy = baselines.eager_logprob_and_entropy(inputs.logits, inputs.token)
    out = rlkern.token_logprob(inputs.logits, inputs.token)
    torch.testing.assert_close(out.logprob, logprob)
    torch.testing.assert_close(out.entropy, entropy)
