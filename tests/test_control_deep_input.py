# SPDX-License-Identifier: Apache-2.0
"""What people are told whose settings do not suit an algorithm that learns with networks."""

import io
import re

import pytest
import torch
from rich.console import Console

pytest.importorskip("gymnasium")

from control_helpers import run  # noqa: E402

from rlkern import cli  # noqa: E402
from rlkern.control import algorithms, of, rollout, train  # noqa: E402
from rlkern.control.declaration import BOX, DISCRETE  # noqa: E402
from rlkern.control.show import Display  # noqa: E402
from rlkern.runs import trackers  # noqa: E402
from rlkern.runs.errors import UserError  # noqa: E402

DEEP = [each for each in algorithms().values() if each.observations == BOX]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--algorithm", "ppo", "--batch_size", "63"], "batch_size must divide rollout·num_envs"),
        (["--algorithm", "reinforce", "--num_envs", "2"], "num_envs must be 1 for reinforce"),
        (["--algorithm", "sac"], "needs box actions"),
        (["--algorithm", "dqn", "--env", "Pendulum-v1"], "needs discrete actions"),
        (["--algorithm", "dqn", "--buffer_size", "1", "--num_envs", "2"], "at least num_envs"),
        (["--algorithm", "a3c", "--device", "cuda"], "device must be"),
        (["--algorithm", "ppo", "--hidden", "0"], "hidden must be"),
        (["--lr", "0.2"], "did you mean --learning_rate"),
        (["--epsilon", "0.2"], "ppo does not read epsilon; "),
        (["--num_envs", "100000000"], "num_envs must be a whole number from 1 to 10000"),
        (["--output_dir", "/dev/null/x"], "x/ppo-CartPole_v1: reading or writing failed: "),
        (["--name", "''"], "name must hold letters or digits"),
        (["--name", " "], "name must hold letters or digits"),
    ],
)
def test_bad_settings_get_one_sentence_and_nothing_is_written(flags, sentence, tmp_path, capsys):
    place = [] if "--output_dir" in flags else ["--output_dir", str(tmp_path)]
    assert cli.main(["control", *place, *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("algorithm", DEEP, ids=lambda each: each.name)
def test_a_gpu_that_is_not_there_is_not_used(algorithm, tmp_path, capsys):
    flags = ["--algorithm", algorithm.name, "--device", "cuda", "--output_dir", str(tmp_path)]
    env = "CartPole-v1" if DISCRETE in algorithm.actions else "Pendulum-v1"
    assert cli.main(["control", "--env", env, *flags]) == 2
    assert "device must be" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_help_lists_the_keys_of_the_algorithm_or_of_the_default(capsys):
    for flags, own, other in (([], "batch_size", "epsilon"), (["q_learning"], "epsilon", "clip")):
        assert cli.main(["control", "--help", *(f"--algorithm={name}" for name in flags)]) == 0
        listed = capsys.readouterr().out
        assert f"  --{own} X" in listed and f"  --{other} X" not in listed


def test_a_tracker_that_is_missing_is_named_with_the_key(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    flags = ["--log", "mlflow", "--output_dir", str(tmp_path)]
    assert cli.main(["control", *flags]) == 2
    assert capsys.readouterr().err.startswith("rlkern control: log mlflow needs the package")
    assert not list(tmp_path.iterdir())


def test_a_file_may_name_the_algorithm_whose_flags_follow(tmp_path, capsys):
    file = tmp_path / "q.yaml"
    file.write_text("algorithm: q_learning\nenv: CliffWalking-v1\n")
    flags = ["--config", str(file), "--epsilon", "0.25", "--print_config"]
    assert cli.main(["control", *flags]) == 0
    assert "epsilon: 0.25" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"steps": 15, "num_envs": 4, "batch_size": 4, "rollout": 4},
            "16 steps were taken, 1 more",
        ),
        (
            {"steps": 10**6, "max_seconds": 1e-3},
            "max_seconds ended the run after .* --max_seconds 0",
        ),
    ],
)
def test_an_end_beside_the_steps_that_were_asked_is_said(tmp_path, changes, said):
    out = io.StringIO()
    given = {"algorithm": "ppo", "eval_episodes": 1, "log": (), "output_dir": str(tmp_path)}
    summary = train(of(**given, **changes), display=Display(Console(file=out, width=400)))
    assert re.search(said, out.getvalue())
    assert summary["steps"] != changes["steps"]


def test_no_memory_is_one_sentence(tmp_path, capsys):
    flags = ["--algorithm", "dqn", "--buffer_size", str(10**15), "--output_dir", str(tmp_path)]
    assert cli.main(["control", *flags]) == 2
    assert capsys.readouterr().err.startswith("rlkern control: out of memory: ")


@pytest.mark.parametrize(
    "algorithm",
    [each for each in DEEP if "episodes" in each.settings.model_fields],
    ids=lambda each: each.name,
)
def test_an_episode_without_an_end_does_not_hold_a_run_for_ever(algorithm, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "PATIENCE", 40)
    settings = {"algorithm": algorithm.name, "env": "Countdown-v0", "steps": 30}
    with pytest.raises(UserError, match="has not ended after 40 steps, .*max_episode_steps"):
        run(tmp_path, **settings, eval_length=30, env_options={"last": 10**9})
    limited = {"last": 10**9, "max_episode_steps": 60}
    assert run(tmp_path, **settings, env_options=limited)["steps"] == 60
