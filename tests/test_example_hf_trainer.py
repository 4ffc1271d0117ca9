# SPDX-License-Identifier: Apache-2.0
"""The example of the Trainer of transformers: one step is one step, however its batch is split."""

import importlib.util
import subprocess
import sys

import pytest
import torch
import trainer_helpers

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

PAGE = trainer_helpers.ROOT / "examples" / "hf_trainer.py"


def example():
    spec = importlib.util.spec_from_file_location("hf_trainer_example", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(folder, **split):
    """Returns the weights after two steps."""
    trainer = example().make_trainer(str(folder), steps=2, **split)
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hf_trainer import make_trainer
import torch
trainer = make_trainer(sys.argv[2], steps=2, batch=2, accumulation=2)
trainer.train()
if trainer.is_world_process_zero():
    plain = trainer.accelerator.unwrap_model(trainer.model)
    state = {name: p.detach() for name, p in plain.named_parameters()}
    torch.save(state, Path(sys.argv[2]) / "weights.pt")
"""


def test_two_processes_take_the_step_of_one(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(tmp_path / "driver.py"), str(PAGE.parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "weights.pt")
    one = weights(tmp_path / "one", batch=8)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_a_step_does_not_depend_on_how_its_batch_is_split(tmp_path):
    whole = weights(tmp_path, batch=8)
    split = weights(tmp_path, batch=2, accumulation=4)
    started = example().make_trainer(str(tmp_path)).model
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-4, atol=1e-5)
    moved = [n for n, p in started.named_parameters() if not torch.equal(p, whole[n])]
    assert "lm_head.weight" in moved and "model.embed_tokens.weight" in moved
