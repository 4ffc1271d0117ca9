# SPDX-License-Identifier: Apache-2.0
"""A supervised start that is stopped goes on from there."""

import os
import signal

import pytest
from trainer_helpers import changed, compiled, small, without_times  # noqa: F401

from rlkern.runs.logs import read_metrics
from rlkern.trainer import UserError, train
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
