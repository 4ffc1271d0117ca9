# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md is made of rows: these tests make up small ones."""

import argparse
import json
import re

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import bench_linear_policy_loss as bench_linear
from benchmarks import (
    beside_peers,
    end_to_end,
    models,
    page,
    plots,
    readme,
    report,
    rivals,
    slower,
    steps,
)
from rlkern import integrations

WHERE = {"cpu": "C", "threads": 2, "isa": "AVX512", "torch": "2", "commit": "abc"}
NARROW = WHERE | {"isa": "AVX2"}
GROUP = "policy_loss 512x151936 bfloat16"
SIDE = {"seconds": 5.0, "rollout": 2.0, "tokens_a_second": 9.0, "before_mib": 800.0,
        "peak_mib": 7.0}  # fmt: skip


def recorded(folder, where, rows, group=GROUP, **spared):
    """Records rows of medians between 0.9 and 1.1 times themselves."""
    times = {group: {k: report.Timing(x, 0.9 * x, 1.1 * x, x) for k, x in rows.items()}}
    report.record(times, folder / page.CPU, where, complete=True, **spared)


def step_of(case, ratio, **sides):
    return {"case": case, "dtype": "float32", "threads": 2, "cpu": "C", "ratio": ratio, **sides}


def test_the_page_shows_the_newest_processor_and_compares_it_with_the_others(tmp_path):
    recorded(tmp_path, WHERE, {"rlkern_in_place": 2.0, "eager": 50.0})
    recorded(tmp_path, NARROW, {"rlkern_in_place": 4.0, "eager": 60.0})
    text = page.numbers(tmp_path)
    assert "| 512 × 151936 bfloat16 | – | 4 (3.6–4.4) | – | 60 (54–66) | – | 15.0 | – |" in text
    assert "|  | ratio | C, AVX2 | C, AVX512 |" in text
    assert "| eager / rlkern in place | 15.0 (12.3–18.3) | 25.0 (20.5–30.6) |" in text


def test_the_readme_shows_of_a_gpu_what_the_page_shows(tmp_path):
    old, new = (WHERE | {"commit": x, "date": "1", "device": "GPU", "shape": [8, 9]} for x in "ab")
    rows = [old | {"row": "rlkern_gae", "ms": 7.125}, old | {"row": "eager_gae", "ms": 8.25},
            new | {"row": "rlkern_gae", "ms": 6.125}]  # fmt: skip
    (tmp_path / "gpu.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    assert "| GPU | GAE, 8 × 9 | 6.12 | – | – | – |" in readme.short(tmp_path)
    assert "8.25" not in page.numbers(tmp_path)


def test_what_a_processor_is_spared_is_on_the_page(tmp_path):
    recorded(tmp_path, NARROW, {"rlkern_in_place": 4.0}, spared={"x_y 1": "slow", "z": "slow"})
    assert "Left out: x y 1, z (slow)." in page.numbers(tmp_path)


def test_a_row_that_is_faster_elsewhere_is_named_once_for_each_operation(tmp_path):
    recorded(tmp_path, WHERE, {"rlkern_in_place": 4.0, "eager": 60.0})
    assert page.FASTEST in page.numbers(tmp_path)
    recorded(tmp_path, WHERE, {"rlkern_in_place": 4.0, "eager": 2.0, "memcpy_of_the_logits": 1.0})
    (line,) = [x for x in page.numbers(tmp_path).split("\n") if x.startswith("- ")]
    assert line.endswith("policy loss: eager is faster at 512 × 151936 bfloat16 (2.00 times)")


def test_every_row_of_others_on_record_has_a_row_of_ours_beside_it():
    here = report.RESULTS / page.CPU
    found = [
        slower.of_processor(report.on_record(report.records(here), x))
        for x in report.machines(here)
    ]
    found += [slower.of_gpu(report.records(path)) for path in page.gpu_files(report.RESULTS)]
    for rows in found:
        for ms in rows.values():
            theirs = [x for x in ms if re.match(r"eager|(torch_)?compile|liger|python", x)]
            assert not [x for x in theirs if rivals.pair(x, ms) is None]


def test_a_step_is_told_by_part_and_a_slower_one_is_said():
    ours = SIDE | {"loss": 1.0, "score": 0.5, "step": 0.5, "grading": 0.25, "reward": 9.0}
    records = [step_of("short", 4.0, rlkern=ours, trl=SIDE),
               step_of("short", 0.5, rlkern=ours, trl=SIDE)]  # fmt: skip
    first, second = steps.table(records).split("\n")[2:]
    assert first == (
        "| short, float32 | rlkern | 5 | 2 | 0.25 | 1.5 | 0.5 | 0.75 | – | 9 "
        "| 800 (≤ 700) **missed** | 7 | 9 | 0.50 (≥ 5) **missed** |"
    )
    assert second == "| short, float32 | trl | 5 | 2 | – | – | – | – | 3 | 9 | 800 | 7 | – |  |"
    assert steps.slower(records) == ["- whole steps, short, float32: TRL is faster (2.00 times)"]


def test_tokens_a_second_have_that_name_from_the_clock_to_the_page(monkeypatch):
    run = {who: [dict.fromkeys(end_to_end.SPEEDS.values(), x)]
           for who, x in (("rlkern", 30.0), ("generate", 20.0))}  # fmt: skip
    monkeypatch.setattr(end_to_end, "job_of", lambda *_: {})
    monkeypatch.setattr(end_to_end, "child", lambda *_: run)
    found = end_to_end.compared("ends", argparse.Namespace(rounds=1))
    assert found["rlkern"] == {"tokens_a_second": 30.0, "tokens_a_cpu_second": 30.0}
    last = steps.sampling([step_of("ends", **found)]).split("\n")[-1]
    assert last == "| ends, float32 | 30 | 20 | 1.50 (≥ 1.5) |"
    known = [x for x in report.records(report.RESULTS / page.STEPS) if "generate" in x]
    assert known and all(x["rlkern"].keys() == found["rlkern"].keys() for x in known)


def test_a_bar_is_as_long_as_the_step_whatever_the_parts():
    ours = SIDE | {"loss": 1.0, "score": 0.5, "step": 0.5, "grading": 0.25, "reward": 9.0}
    (plot,) = steps.plot([step_of("short", 4.0, rlkern=ours, trl=SIDE)])
    for theme in (plots.LIGHT, plots.DARK):
        axes = Figure().subplots()
        plot.draw(axes, theme)
        ends = {}
        for bar in axes.patches:
            ends[bar.get_y()] = max(ends.get(bar.get_y(), 0.0), bar.get_x() + bar.get_width())
        assert list(ends.values()) == [pytest.approx(5.0)] * 2  # SIDE's seconds
    with pytest.raises(ValueError, match="a plot has 6 colours, got a, b, c, d, e, f, g"):
        plots.LIGHT.color_of("abcdefg")


def test_the_share_of_the_ceiling_is_the_rate_over_the_copy_s():
    copy = report.Timing(2.0, 2.0, 2.0, 2.0, work=0.4)
    rows = {"memcpy_of_the_logits": copy, "rlkern_in_place": copy._replace(median=4.0),
            "torch_compile": copy._replace(median=20.0),
            "eager": copy._replace(median=40.0)}  # fmt: skip
    (plot,) = plots.by_ceiling({GROUP: rows})
    axes = Figure().subplots()
    plot.draw(axes, plots.LIGHT)
    assert [bar.get_width() for bar in axes.patches if bar.get_width()] == [50.0, 10.0]
    legend = dict(zip(plots.LIGHT.color_of(["rlkern", "eager", "torch.compile"]), axes.containers))
    other = next(bar for bar in legend["torch.compile"] if bar.get_width())
    assert to_hex(other.get_facecolor()) == plots.LIGHT.colors[2]  # as in the plots of lines
    assert plots.by_ceiling({GROUP: {"rlkern_in_place": copy}}) == []


def test_a_plot_is_left_out_where_no_rows_are_and_drawn_twice_where_they_are(tmp_path):
    assert page.drawn(tmp_path) == {}
    assert "python -m benchmarks.memory" in page.numbers(tmp_path)
    lines = [WHERE | {"row": row, "tokens": n, "extra_mib": 3.0 * n}
             for row in ("eager", "rlkern") for n in (64, 128)]  # fmt: skip
    (tmp_path / page.MEMORY).write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert '"benchmarks/memory-light.png"' in page.numbers(tmp_path)
    page.drawn(tmp_path)["memory"].write(tmp_path)
    light, dark = (Image.open(tmp_path / f"memory-{x}.png") for x in ("light", "dark"))
    assert light.size == dark.size == (700, 440)
    corner = [image.convert("RGB").getpixel((0, 0)) for image in (light, dark)]
    assert corner == [(255, 255, 255), (13, 17, 23)]


@pytest.mark.parametrize("path", (readme.PAGE, readme.README))
def test_every_picture_of_a_document_is_there(path):
    named = re.findall(r'(?:srcset|src)="([^"]+)"', path.read_text(encoding="utf-8"))
    assert len(named) >= 2 and all((path.parent / name).is_file() for name in named)
    assert all(plot.draw for plot in page.drawn().values()) and plots.FONT >= 14


def test_the_computed_memory_is_what_was_measured_on_a_gpu():
    rows = {(x["row"], *x["shape"]): x.get("peak_extra_bytes")
            for x in report.records(report.RESULTS / "nvidia_h200.jsonl")}  # fmt: skip
    N, H, V = models.TOKENS, 4096, 128256
    eager = models.Model("", H, 151936)
    logits = N * eager.row_bytes
    assert eager.eager_bytes - logits == pytest.approx(
        rows["eager_policy_loss", N, 151936], rel=1e-3
    )
    gradients = models.BFLOAT16 * H * (V + N)
    measured = rows["rlkern_linear_policy_loss", N, H, V] - gradients
    assert models.Model("", H, V).linear_bytes == pytest.approx(measured, rel=0.01)


def test_a_peer_that_rlkern_serves_is_no_peer(monkeypatch):
    patched = integrations.Status("verl", "0.9.1", "verl>=0.9", {"verl.f": 3})
    monkeypatch.setattr(beside_peers.integrations, "status", lambda: [patched])
    with pytest.raises(RuntimeError, match="must not serve the peers, and is patched into verl"):
        beside_peers.calls_of("gae", (4, 16), {})


@pytest.mark.parametrize("operation", beside_peers.SIZES)
def test_what_the_peers_are_held_to_is_what_rlkern_computes(operation, monkeypatch):
    monkeypatch.setattr(beside_peers.cpu_peers, "SMOKE", True)
    absent: dict[str, str] = {}
    calls = beside_peers.calls_of(operation, beside_peers.SIZES[operation][1], absent)
    assert {"rlkern"} < calls.keys() and beside_peers.disagreements(calls) == {}
    wrong = calls | {"wrong": lambda: tuple(1.01 * x for x in calls["rlkern"]())}
    assert beside_peers.disagreements(wrong).keys() == {"wrong"}


def test_a_peer_reaches_the_page_or_the_reason_why_it_is_absent(tmp_path):
    assert "make bench-peers" in page.numbers(tmp_path)
    about = WHERE | {"op": "gae", "size": "4"}
    rows = [about | {"row": "rlkern", "ms": [2.0, 1.9, 2.1, 1.8]},
            about | {"row": "verl x", "ms": [3.0, 2.5, 3.5, 2.0]},
            about | {"row": "y", "absent": "not here"}]  # fmt: skip
    (tmp_path / beside_peers.PEERS).write_text("".join(json.dumps(x) + "\n" for x in rows))
    text = page.numbers(tmp_path)
    assert "is faster at" not in text
    assert "| verl x | 3 (2.5–3.5) | 1.50 |" in text and "| y | not here |  |" in text


def once(ms):
    """Returns a row without a spread."""
    return {"a": report.Timing(ms, ms, ms, ms)}


def test_rows_of_two_instruction_sets_stay_side_by_side_and_are_compared_with_their_own(tmp_path):
    path = tmp_path / "cpu.jsonl"
    wide, narrow = (WHERE, NARROW)
    report.record({"g": once(1.0)}, path, wide, complete=True)
    report.record({"h": once(3.0)}, path, narrow, complete=True, spared={"g": "imitated"})
    assert [x["isa"] for x in report.machines(path)] == ["AVX2", "AVX512"]
    assert report.on_record(report.records(path), wide) == {"g": once(1.0)}
    assert report.on_record(report.records(path), narrow) == {"h": once(3.0)}
    assert report.left_out(path, narrow) == {"g": "imitated"} and not report.left_out(path, wide)
    report.record({"g": once(2.0)}, path, narrow, complete=False)
    assert report.left_out(path, narrow) == {}


@pytest.mark.parametrize("native", (True, False))
def test_products_of_bfloat16_are_left_out_where_they_are_imitated(monkeypatch, native):
    monkeypatch.setattr(bench_linear, "SMOKE", False)
    monkeypatch.setattr(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native, raising=False
    )
    spared = set() if native else {f"linear_policy_loss {n}x896x151936 bfloat16"
                                   for n in (64, 128, 512)}  # fmt: skip
    assert bench_linear.left_out().keys() == spared
