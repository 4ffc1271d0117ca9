# SPDX-License-Identifier: Apache-2.0
"""The command line: settings, help, and one sentence for each mistake."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trainer_helpers import ROOT, flags, settings, small

from rlkern import cli
from rlkern.runs.settings.layers import leaves
from rlkern.runs.settings.message import expected
from rlkern.trainer import pipeline
from rlkern.trainer.processes.world import World
from rlkern.trainer.settings import Settings, dump, of


def run(capsys, *arguments):
    """Returns the exit code, stdout and stderr of the command line in this process."""
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def printed_config(capsys, *arguments):
    code, out, err = run(capsys, "train", *arguments, "--print-config")
    assert code == 0, err
    return yaml.safe_load(out)


def test_flags_go_over_the_file_and_the_file_over_the_defaults(capsys, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "optimizer.lr: 0.25\nsteps: 7\ntask: simple_equations\ndata:\n  options:\n    max: 1\n"
    )
    given = ["--config", file, "--steps", 9, "--coefficients.kl-coef", 0.5, "--data.options.min=2"]
    found = printed_config(capsys, *given)
    expected = dump(settings(task="simple_equations"))
    expected["optimizer"]["lr"], expected["steps"] = 0.25, 9
    expected["coefficients"]["kl_coef"] = 0.5
    expected["data"]["options"] = {"max": 1, "min": 2}
    assert found == expected


def test_printed_settings_read_back_are_the_same_settings(capsys, tmp_path):
    first = printed_config(capsys, *flags(small(tmp_path, coefficients={})))
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(first))
    assert printed_config(capsys, "--config", file) == first
    assert of(**first) == small(tmp_path)


FILES = [(p, yaml.safe_load(p.read_text())) for p in sorted((ROOT / "configs").rglob("*.yaml"))]
RUNS = [path for path, held in FILES if "stages" not in held and "start" not in held]
PIPELINES = [path for path, held in FILES if "stages" in held]


@pytest.mark.parametrize("file", RUNS, ids=lambda p: p.name)
def test_every_file_in_configs_is_valid(capsys, file):
    printed_config(capsys, "--config", file)


@pytest.mark.parametrize("file", PIPELINES, ids=lambda p: p.name)
def test_every_pipeline_in_configs_can_begin(capsys, file):
    # On the model that needs no package beside the trainer's own.
    stages = printed_config(capsys, "--config", file, "--model", "tiny")["stages"]
    pipeline.check_stages(pipeline.plan(Path("x"), [of(**stage) for stage in stages]), World())


def test_every_key_has_a_help_text(capsys):
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0
    for key, info in leaves(Settings):
        entry = out[out.index(f"\n  --{key} X") :].split("\n  --")[1].split("\n\n")[0]
        assert len(entry.partition("[")[0].split()) > 4, f"{key} is not described"
        if key in ("groups.kind", "correction.kind"):  # of several groups: test_settings_flags.py
            continue
        takes = f"[{expected(info)}]" in " ".join(entry.split())
        assert takes or expected(info) in ("text", "key: value pairs"), key


WRONG = [
    (["--algorithm", "gpro"], "flags: there is no algorithm 'gpro'; did you mean grpo"),
    (["--task", "adition"], "there is no task 'adition'"),
    (["--model", "no/such/model"], "there is no model 'no/such/model'"),
    (["--stepz", "3"], "there is no flag --stepz; did you mean --steps"),
    (["--steps", "three"], "flags: steps must be a whole number, at least 1, got 'three'"),
    (["--steps", "0"], "steps must be a whole number, at least 1, got '0'"),
    (["--optimizer.lr", "nan"], "optimizer.lr must be a finite number above 0, got 'nan'"),
    (["--optimizer.lr", "-1"], "optimizer.lr must be a finite number above 0, got '-1'"),
    (["--rollout.group_size", "1"], "rollout.group_size must be at least 2"),
    (["--batch.micro_batches", "99"], "batch.micro_batches must be at most batch.prompts"),
    (
        ["--coefficients.clip_hihg", "0.3"],
        "has no coefficient 'clip_hihg': .*; did you mean clip_high",
    ),
    (["--kl_coef", "1"], "no flag --kl_coef; did you mean --reward.kl_coef or --coefficients.kl"),
    (["--coefficients.kl_coef"], "--coefficients.kl_coef: expected one argument"),
    (["--name", "a/b"], "name must be a folder name"),
    (["--config", "missing.yaml"], "missing.yaml"),
    (["--reward.functions", "no_module_here:f"], "reward 'no_module_here:f' cannot be imported"),
    (["--rollout.max_new_tokens", "600"], "do not fit the model's context"),
    (["--resume", "no/such/run"], "there is no run to resume in no/such/run"),
    (["--lora.rank", "4", "--lora.targets", "foo"], "lora.targets must be all-linear or names of"),
    (["--resume"], "there is no run to resume"),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), WRONG, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_a_mistake_is_one_sentence_before_anything_is_written(
    capsys, tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "train", "--output.dir", tmp_path / "runs", *arguments)
    assert code == 2
    assert err.startswith("rlkern train: ") and err.count("\n") == 1
    assert re.search(sentence, err), err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise KeyError('x')", "reward function broken raised KeyError: 'x'"),
        ("return [0.0]", "reward function broken must return 16 rewards, got 1"),
        ("return [float('nan')] * len(completions)", "reward function broken must return finite"),
    ],
)
def test_a_broken_reward_function_is_named_and_ends_the_run(
    capsys, tmp_path, monkeypatch, body, sentence
):
    monkeypatch.chdir(tmp_path)
    module = f"reward_{abs(hash(body))}"
    Path(f"{module}.py").write_text(f"def broken(prompts, completions, **columns):\n    {body}\n")
    config = small(tmp_path, sft=None, reward__functions=f"{module}:broken")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, err = run(capsys, "train", *flags(config))
    assert code == 2
    assert err == f"rlkern train: {err.removeprefix('rlkern train: ')}" and sentence in err
    assert "Traceback" not in err


def test_an_unknown_command_names_the_commands(capsys):
    code, _, err = run(capsys, "trian")
    assert code == 2 and "use train, eval, " in err and "doctor" in err


def test_a_reader_that_has_seen_enough_is_no_mistake():
    command = [sys.executable, "-m", "rlkern", "algorithms"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert (child.stderr.read(), child.wait()) == (b"", 141)


def test_algorithms_lists_the_registry(capsys):
    import rlkern

    code, out, _ = run(capsys, "algorithms")
    assert code == 0
    assert all(f"\n  {name}  (" in out for name in rlkern.algorithms())
    assert all(f"\n  {name}  (" in out for name in rlkern.offline_algorithms())
    assert "loss preference_loss, trains policy" in out and "mean by token_mean" in out
