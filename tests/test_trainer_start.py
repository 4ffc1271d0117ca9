# SPDX-License-Identifier: Apache-2.0
"""A supervised start that is stopped goes on from there."""

import os
import signal

import pytest
import torch
from trainer_helpers import begun, changed, compiled, small, without_times  # noqa: F401

from rlkern.runs.logs import read_metrics
from rlkern.trainer import UserError, build, train
from rlkern.trainer.run import checkpoint
from rlkern.trainer.show.display import Display

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.mark.parametrize("changes", [{}, {"lora__rank": 4}, {"algorithm": "ppo"}], ids=str)
def test_ctrl_c_in_the_supervised_start_keeps_it(tmp_path, monkeypatch, changes):
    whole = small(tmp_path, name="whole", steps=2, sft__steps=12, **changes)
    cut, run, real, seen = changed(whole, name="cut"), tmp_path / "runs" / "cut", Display.sft, []

    def sft(self, step, *rest):
        seen.append(step)
        if step == 7 and len(seen) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, step, *rest)

    monkeypatch.setattr(Display, "sft", sft)
    with pytest.raises(UserError, match="of the supervised start is kept, go on with: .*/cut"):
        train(cut)
    assert checkpoint.damage(run / "supervised") is None
    train(cut, resume=True)
    assert seen == list(range(1, 13)) and not (run / "supervised").exists()
    train(whole)
    curves = [without_times(read_metrics(tmp_path / "runs" / name)) for name in ("whole", "cut")]
    assert curves[0] == curves[1]
    weights = list(run.glob("checkpoint-2/**/*.safetensors"))
    assert weights
    for path in weights:
        assert path.read_bytes() == (tmp_path / "runs/whole" / path.relative_to(run)).read_bytes()


def test_the_time_limit_ends_the_supervised_start_and_keeps_it(tmp_path):
    late = small(tmp_path, name="late", steps=1, sft__steps=6, max_seconds=1e-3)
    said = "ended the supervised start after step 1 of 6; .*start is kept, go on with: .*/late"
    with pytest.raises(UserError, match=said):
        train(late)
    run = tmp_path / "runs" / "late"
    assert checkpoint.damage(run / "supervised") is None and not (run / "summary.json").exists()
    assert train(changed(late, max_seconds=0.0), resume=True)["steps"] == 1
    whole = changed(late, name="whole", max_seconds=0.0)
    train(whole)
    curves = [without_times(read_metrics(tmp_path / "runs" / name)) for name in ("whole", "late")]
    assert curves[0] == curves[1]


@pytest.mark.skipif(not hasattr(os, "confstr"), reason="the C library does not say which it is")
def test_a_run_gives_back_what_was_freed_before_its_first_step(tmp_path, monkeypatch):
    if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
        pytest.skip("another C library than glibc")
    called, give_back = [], build.give_back_memory
    monkeypatch.setattr(build, "give_back_memory", lambda: called.append(give_back()))
    begun(small(tmp_path), tmp_path)
    assert called == [None]
    # Too small for mappings of their own; the last one holds the end of the heap.
    blocks = [torch.ones(2**14) for _ in range(1024)]
    last = blocks.pop()
    del blocks
    before = resident_bytes()
    give_back()
    assert before - resident_bytes() > 2**25 and last[0] == 1


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
