# SPDX-License-Identifier: Apache-2.0
"""Settings as flags: their names, their values, their help, and how soon they are read."""

import re
import subprocess
import sys
import typing

import pytest
import yaml
from trainer_helpers import ROOT, child_environment

from rlkern import cli
from rlkern.runs.settings.layers import classes, leaves
from rlkern.trainer.settings import Settings, dump, of


def printed(capsys, *words):
    """Returns the settings that flags make."""
    assert cli.main(["train", *map(str, words), "--print-config"]) == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def refused(capsys, *words):
    """Returns the sentence that refuses flags."""
    assert cli.main(["train", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rlkern train: ") and err.count("\n") == 1
    return err


def test_lists_take_commas_groups_their_main_key_and_null_turns_off(capsys):
    words = ["--eval.pass_at", "1, 4", "--eval.samples=4", "--rollout.top-k", 3, "--lora", 4]
    words += ["--lora.targets", "q_proj,v_proj", "--sft", "null", "--groups", "dynamic"]
    words += ["--optimizer.decay", "cosine", "--memory.share_prompts", "false", "--loss", "fused"]
    found = printed(capsys, *words)
    assert (found["eval"]["pass_at"], found["rollout"]["top_k"]) == ([1, 4], 3)
    assert found["lora"]["rank"] == 4 and found["lora"]["targets"] == ["q_proj", "v_proj"]
    assert found["sft"] is None and found["groups"]["kind"] == "dynamic"
    assert found["optimizer"]["decay"]["kind"] == "cosine" and found["loss"]["path"] == "fused"
    assert found["memory"]["share_prompts"] is False


def test_coefficients_are_flags_of_their_own_or_a_mapping(capsys):
    for words in (
        ["--coefficients.kl-coef", "1e-3", "--coefficients.clip_low=0.1"],
        ["--coefficients", "{kl_coef: 1e-3}", "--coefficients.clip_low", 0.1],
    ):
        own = printed(capsys, *words)["coefficients"]
        assert own == {**of().coefficients, "kl_coef": 0.001, "clip_low": 0.1}
    k2 = ("--coefficients.kl_estimator", "k2", "--coefficients.kl_coef", 0.1)
    named = printed(capsys, *k2)["coefficients"]
    assert named["kl_estimator"] == "k2"
    assert "coefficients must be key: value pairs" in refused(capsys, "--coefficients", "high")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--step", 3], "there is no flag --step; did you mean --steps"),
        (["--print", 1], "there is no flag --print"),
        (["--eval.item", 3], "there is no flag --eval.item; did you mean --eval.items"),
        (["--group_size=3"], "there is no flag --group_size; did you mean --rollout.group_size"),
        (["--clip-low", 0.1], "there is no flag --clip_low; did you mean --coefficients.clip_low"),
        (["--lr", 1], "--lr; did you mean --critic.lr or --optimizer.lr or --sft.lr"),
        (["--batch", 3], "there is no flag --batch"),
        (["extra"], "there is no flag extra"),
        (["--steps"], "argument --steps: expected one argument"),
        (["--steps", "3x"], "flags: steps must be a whole number, at least 1, got '3x'"),
    ],
)
def test_a_flag_is_never_abbreviated_and_a_wrong_one_names_the_one_that_was_meant(
    capsys, words, sentence
):
    assert sentence in refused(capsys, *words)


def test_help_has_every_key_once_under_the_heading_of_its_group(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for key, _ in leaves(Settings):
        assert text.count(f"\n  --{key} X") == 1, key
    headings = ["the run", *(name for name in dict.fromkeys(
        key.split(".")[0] for key, _ in leaves(Settings) if "." in key))]  # fmt: skip
    places = [text.index(f"\n{name}:\n") for name in headings]
    assert places == sorted(places) and len(places) > 10
    for name, place, end in zip(headings, places, [*places[1:], len(text)], strict=True):
        flags = [line.split()[0] for line in text[place:end].split("\n") if line[:4] == "  --"]
        assert flags
        if name != "the run":
            assert all(flag == f"--{name}" or flag.startswith(f"--{name}.") for flag in flags)


@pytest.mark.parametrize("key", ("groups", "correction"))
def test_help_lists_every_alternative_of_a_group(key, capsys):
    assert cli.main(["train", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    (listed,) = re.findall(rf"--{key}\.kind X .*?\[one of ([^]]*)\]", said)
    annotation = Settings.model_fields[key].annotation
    kinds = [kind.model_fields["kind"].annotation for kind in classes(annotation)]
    assert listed.split(", ") == [word for kind in kinds for word in typing.get_args(kind)]


def test_help_and_mistakes_import_no_torch():
    commands = ("train", "eval", "sample", "chat", "show", "export", "reward", "compare", "bench")
    for words in (*([name, "--help"] for name in commands), ["train", "--stepz", "3"]):
        code = (
            "import sys\nfrom rlkern.cli import main\n"
            f"main({words!r})\nassert 'torch' not in sys.modules\n"
        )
        child = subprocess.run(
            [sys.executable, "-c", code], env=child_environment(), cwd=ROOT, capture_output=True
        )
        assert child.returncode == 0, child.stderr.decode()


def test_a_file_a_run_wrote_can_be_given_back(capsys, tmp_path):
    file = tmp_path / "again.yaml"
    first = printed(capsys, "--algorithm", "ppo", "--steps", 3)
    file.write_text(yaml.safe_dump(first))
    assert printed(capsys, "--config", file) == first == dump(of(algorithm="ppo", steps=3))
