# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark's rows, records and goals, on a machine without one; nothing here is timed."""

import json
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from benchmarks import bench_policy_loss, gpu, gpu_rows, page, peers, report
from rlkern.testing.timed_inputs import Inputs


def test_the_gpu_benchmark_runs_small_on_any_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "PEERS", {"liger_kernel": peers.liger, "trl": peers.trl})
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "trl", None)
    for part in ("1", "2"):
        gpu.main(["--smoke", "--part", part, "--results", str(tmp_path)])
    said = capsys.readouterr().out
    assert "not installed" in said
    found = {x["row"]: x for x in report.records(tmp_path / "smoke.jsonl")}
    inputs = Inputs(16, 130, torch.bfloat16)
    rows = gpu_rows.our_rows(inputs) | gpu_rows.other_rows(inputs, "eager")
    assert found.keys() >= rows.keys() | {"matmul", "rlkern_gae", "rlkern_linear_policy_loss"}
    assert all(f"\n{row} " in said for row in found)


@pytest.mark.parametrize("commit", ("abc-dirty", ""))
def test_rows_that_nobody_could_measure_again_are_kept_in_another_folder_alone(
    commit, monkeypatch, capsys, tmp_path
):
    for name in report.FORCED:
        monkeypatch.delenv(name, raising=False)
    device = gpu.Device("cuda", "GPU")
    monkeypatch.setattr(gpu.Device, "found", lambda: device)
    monkeypatch.setattr(gpu.rlkern, "backend_name", lambda *_: "triton")
    monkeypatch.setattr(gpu, "machine", lambda: {"date": "1", "commit": commit, "torch": "2"})
    rows = [{"row": "x", "shape": [8], "ms": 1.0}]
    monkeypatch.setattr(gpu, "measure_all", lambda *_: iter(rows))
    with pytest.raises(SystemExit, match="not recorded: .*, or name another folder"):
        gpu.main([])
    for _ in range(2):
        gpu.main(["--results", str(tmp_path)])
    assert len(report.records(tmp_path / "gpu.jsonl")) == 2
    assert "of these rows there can be no record" in capsys.readouterr().out


def test_no_row_on_record_is_of_a_tree_that_no_commit_holds():
    for path in report.RESULTS.glob("*.jsonl"):
        if path.name != "instructions.jsonl":
            assert [x for x in report.records(path) if report.refusal(x)] == []


def test_a_profiler_is_given_one_row(capsys):
    gpu.main(["--smoke", "--once", "rlkern_gae"])
    with pytest.raises(SystemExit, match="--once must be a row of part 1, got 'gae'"):
        gpu.main(["--smoke", "--once", "gae"])


@pytest.fixture
def pretend_liger(monkeypatch):
    """Returns what puts a function in the place of Liger's loss, of all peers the only one."""

    def install(triton_grpo_loss):
        for name in ("liger_kernel", "liger_kernel.transformers"):
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        loss = ModuleType("liger_kernel.transformers.grpo_loss")
        loss.triton_grpo_loss = triton_grpo_loss
        monkeypatch.setitem(sys.modules, loss.__name__, loss)
        monkeypatch.setattr(peers, "PEERS", {"liger_kernel": peers.liger})

    return install


def test_a_peer_that_cannot_run_is_named_and_the_others_are_timed(capsys, pretend_liger):
    def broken(*unused, **options):
        raise TypeError("other arguments")

    pretend_liger(broken)
    rows = gpu_rows.other_rows(Inputs(16, 130, torch.bfloat16), "eager")
    group = gpu_rows.Group((16, 130), rows)
    records = {x["row"]: x for x in gpu.measure(group, gpu.Device("cpu", "cpu"), 1)}
    assert records["liger_gspo_in_place"]["error"] == "other arguments"
    assert "cannot run here: other arguments" in gpu.line(records["liger_gspo_in_place"])
    assert len(records) == len(rows) and "ms" in records["eager_softcap"]


def test_a_peer_is_called_with_one_position_more_than_it_scores(pretend_liger):
    given = []

    def loss(logits, old_logp, completion_ids, advantages, completion_mask, **others):
        ref_logp, level = others["ref_logp"], others.get("importance_sampling_level", "token")
        given.append((level, others["eps_low"], others["beta"]))
        b, t, _ = logits.shape
        assert advantages.shape == (b,)
        for x in (old_logp, ref_logp, completion_ids, completion_mask):
            assert x.shape == (b, t - 1) and x.is_contiguous()
        return (logits[:, :-1].sum(-1), None, None)

    pretend_liger(loss)
    for run_row, _ in peers.rows(Inputs(16, 130, torch.float32))[0].values():
        run_row()
    assert given == [("token", 0.2, 0.04), ("sequence", 3e-4, 0.04)]


def test_the_goals_of_the_gpu_hold_there_and_at_that_size_alone():
    h200 = gpu.Device("cuda", "NVIDIA H200")
    shape = gpu_rows.GOALS.logits
    record = {"row": "rlkern_gspo_in_place", "shape": shape, "ms": 1.8, "gbps": 4320.0}
    judged = gpu.judged(dict(record), h200)
    assert judged["share_of_bound"] == 0.9 and judged["goal_held"] is False
    assert "90% of bound   goal 1.75 ms: MISSED" in gpu.line(judged)
    for device, size in ((gpu.Device("cuda", "NVIDIA A10"), shape), (h200, (64, 1000))):
        assert "goal_ms" not in gpu.judged(record | {"shape": size}, device)


@pytest.mark.parametrize("device", gpu.GOALS_MS)
def test_the_goals_of_the_gpu_are_90_percent_of_the_bytes_of_their_passes(device):
    rows = gpu_rows.our_rows(Inputs(8, 64, torch.bfloat16))
    grown = math.prod(gpu_rows.GOALS.logits) / (8 * 64)
    for name, goal in gpu.GOALS_MS[device].items():
        if name in rows:
            nominal = gpu.NOMINAL_GBPS[device] * 1e9
            share = rows[name].bytes * grown / (goal * 1e-3) / nominal
            assert share == pytest.approx(0.9, abs=0.015)


class Untimed:
    """Stands for pytest-benchmark's fixture: calls nothing."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, *_, **__):
        """Does not time."""


# {row of a processor: the GPU's row of the same work, where its name is another}
SAME_WORK = {
    "rlkern_in_place": "rlkern_policy_loss_in_place",
    "rlkern_into_a_fresh_buffer": "rlkern_policy_loss_fresh_buffer",
    "rlkern_forward_only": "rlkern_policy_loss_alone",
    "eager": "eager_policy_loss", "torch_compile": "compile_policy_loss",
}  # fmt: skip


def test_a_row_has_the_same_bytes_to_move_on_a_processor_and_on_a_gpu():
    inputs = Inputs(16, 130, torch.bfloat16)
    inputs.group = "g"
    rows = gpu_rows.our_rows(inputs) | gpu_rows.other_rows(inputs, "eager")
    tests = {x.removeprefix("test_") for x in vars(bench_policy_loss) if x.startswith("test_")}
    for name in tests - {"memcpy_of_the_logits", "what_is_timed_is_right"}:
        benchmark = Untimed()
        getattr(bench_policy_loss, f"test_{name}")(benchmark, inputs)
        assert 1e9 * benchmark.extra_info["work"] == rows[SAME_WORK.get(name, name)].bytes, name


def test_a_row_that_could_not_run_is_on_the_page_with_the_reason(tmp_path):
    about = {"date": "1", "commit": "a", "torch": "2", "device": "GPU", "shape": [8, 9]}
    rows = [about | {"row": "rlkern_x", "ms": 7.0}, about | {"row": "other_x", "error": "no room"}]
    path = tmp_path / "gpu.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    assert page.gpu(path)[-1] == "Could not run: other x, 8 × 9 (no room)."
    path.write_text(json.dumps(rows[0]) + "\n")
    assert "Could not run" not in "".join(page.gpu(path))
