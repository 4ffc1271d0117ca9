# SPDX-License-Identifier: Apache-2.0
"""Stages one after the other: what each starts from, what is refused, and how a kill ends."""

import json
import signal
import time

import pytest
import yaml
from trainer_helpers import changed, compiled, start, without_times  # noqa: F401
from trainer_rewards import HOLD

from rlkern import cli
from rlkern.runs.logs import METRICS, read_metrics
from rlkern.trainer import UserError, pipeline
from rlkern.trainer.settings import Layer
from rlkern.trainer.settings.document import saved
from rlkern.trainer.settings.resolve import resolved

pytestmark = pytest.mark.usefixtures("compiled")

COMMON = {
    "model": "tiny",
    "device": "cpu",
    "threads": 1,
    "sft": None,
    "steps": 2,
    "batch.prompts": 4,
    "eval.items": 20,
    "eval.modes": ["sampled"],
    "output.save_every": 1,
}


def written(tmp_path, *stages, **top):
    """Returns a YAML file with these stages."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"{i:02d}+11=", "chosen": f"{i + 11:03d}", "rejected": f"{i + 12:03d}"}
        for i in range(30)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = [{k: str(pairs) if v == "PAIRS" else v for k, v in s.items()} for s in stages]
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump({**COMMON, **top, "stages": stages}))
    return file


def run(tmp_path, file, *flags):
    """Returns the exit code of a pipeline below tmp_path."""
    return cli.main(
        ["train", "--config", str(file), "--output.dir", str(tmp_path / "runs"), *map(str, flags)]
    )


SFT = {"algorithm": "sft", "optimizer.lr": 0.002}
SCORER = {"algorithm": "reward_model", "pairs.source": "PAIRS"}
PPO = {
    "algorithm": "ppo",
    "reward.functions": "stage:reward_model,trainer_rewards:even_digits",
    "reward.weights": [1, 0],
}


def test_each_stage_starts_from_what_the_ones_before_it_made(tmp_path, capsys):
    assert run(tmp_path, written(tmp_path, SFT, SCORER, PPO)) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    folder = (tmp_path / "runs" / "short").resolve()
    assert [p.name for p in sorted(folder.glob("?-*"))] == ["1-sft", "2-reward_model", "3-ppo"]
    scorer, ppo = (saved(folder / name / "config.yaml") for name in ("2-reward_model", "3-ppo"))
    assert scorer.model == ppo.model == str(folder / "1-sft" / "checkpoint-2")
    scores = f"{folder}/2-reward_model/checkpoint-2"
    assert ppo.reward.functions == (scores, "trainer_rewards:even_digits")
    assert scorer.optimizer.lr == 1e-5
    assert saved(folder / "1-sft" / "config.yaml").optimizer.lr == 0.002
    line = read_metrics(folder / "3-ppo")[-1]
    names = [key for key in line if key.startswith("rewards/") and key.endswith("/mean")]
    assert len(names) == 2 and line["reward"] == pytest.approx(line[names[0]])
    summaries = json.loads((folder / "pipeline.json").read_text())["stages"]
    assert [s["algorithm"] for s in summaries] == ["sft", "reward_model", "ppo"]
    assert "eval/accuracy_before" in summaries[2] and "stage 3 of 3, ppo" in out
    assert all((folder / s["name"] / "curves.png").is_file() for s in summaries)


def test_a_finished_pipeline_runs_nothing_again(tmp_path, capsys):
    file = written(tmp_path, SFT, {"algorithm": "grpo"})
    assert run(tmp_path, file) == 0
    folder = tmp_path / "runs" / "short"
    before = (folder / "1-sft" / "metrics.jsonl").stat().st_mtime_ns
    assert run(tmp_path, file) == 2
    assert "already holds a run; add --resume" in capsys.readouterr().err
    assert run(tmp_path, file, "--resume") == 0
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert capsys.readouterr().out.count("done before") == 4
    assert (folder / "1-sft" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_pipeline_killed_in_a_stage_goes_on_from_there_to_the_same_end(tmp_path, capsys):
    grpo = {"algorithm": "grpo", "steps": 16, "reward": "trainer_rewards:even_digits"}
    file = written(tmp_path, {**SFT, "steps": 3}, grpo)
    killed = tmp_path / "runs" / "short"
    hold = {HOLD: f"{killed / '2-grpo' / METRICS}:4:{tmp_path / 'never'}"}
    child = start(
        "train", "--config", file, "--output.dir", tmp_path / "runs", cwd=tmp_path, **hold
    )
    while len(read_metrics(killed / "2-grpo")) < 4:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.005)
    child.kill()
    child.wait()
    assert child.returncode == -signal.SIGKILL
    assert not (killed / "2-grpo" / "summary.json").exists()
    assert cli.main(["train", "--resume", str(killed)]) == 0, capsys.readouterr().err
    assert "stage 1 of 2, sft: done before" in capsys.readouterr().out
    assert run(tmp_path, file, "--name", "whole") == 0
    curves = [
        without_times(read_metrics(tmp_path / "runs" / name / "2-grpo"))
        for name in ("short", "whole")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 17


WRONG = [
    ([SFT, {"algorithm": "gpro"}], "there is no algorithm 'gpro'"),
    (
        [SFT, {"algorithm": "grpo", "stepz": 3}],
        "stage grpo: there is no key 'stepz'; did you mean steps",
    ),
    (
        [SFT, {"algorithm": "grpo", "steps": 0}],
        "stage grpo: steps must be a whole number, at least 1, got 0",
    ),
    ([SFT, {"algorithm": "grpo", "task": "adition"}], "stage grpo: there is no task 'adition'"),
    (
        [SFT, {"algorithm": "grpo", "rollout.group_size": 1}],
        "stage grpo: rollout.group_size must be at least 2",
    ),
    (
        [SFT, {"algorithm": "grpo", "reward.functions": "no:f"}],
        "stage grpo: reward 'no:f' cannot be",
    ),
    ([SFT, SFT], "two stages are called 'sft': give one of them a name"),
    ([{**SFT, "model": "stage:x"}], "model names stage:x, but no stage before it is called so"),
    (
        [SFT, {"algorithm": "ppo", "reward.functions": "stage:sft"}],
        "must name a stage that trains a reward model, but",
    ),
    ([SFT, SCORER, {**SFT, "name": "b", "model": "stage:reward_model"}], "that trains a policy"),
    ([], "stages must be a list of mappings"),
    ([SFT, {"algorithm": ["grpo"]}], "there is no algorithm ['grpo']"),
    ([SFT, {"algorithm": "grpo", "name": "../x"}], "name must be a folder name without slashes"),
    (
        [SFT, {"algorithm": "dpo", "pairs.source": "PAIRS", "batch.prompts": 50}],
        "stage dpo: pairs.source ",
    ),
    ([SFT, {"algorithm": "dpo", "task": "guess"}], "stage dpo: "),
    ([SFT, {"algorithm": "grpo", "rollout.max_turns": 3}], "stage grpo: rollout.max_turns "),
    (
        [SFT, {"algorithm": "grpo", "coefficients.clip_low": -1.0}],
        "stage grpo: algorithm grpo: clip_low must",
    ),
    (
        [SFT, {"algorithm": "dapo", "reward.overlong_cache": 9}],
        "stage dapo: reward.overlong_cache ",
    ),
]


@pytest.mark.parametrize(("stages", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_every_stage_is_checked_before_the_first_begins(tmp_path, capsys, stages, sentence):
    assert run(tmp_path, written(tmp_path, *stages)) == 2
    err = capsys.readouterr().err
    assert err.startswith("rlkern train: ") and err.count("\n") == 1 and sentence in err, err
    assert not (tmp_path / "runs").exists()


def test_flags_go_over_every_stage_and_the_model_is_that_of_the_first(tmp_path, capsys):
    file = written(tmp_path, SFT, {"algorithm": "grpo", "steps": 5})
    flags = ["--steps", "7", "--model", "smollm2", "--print-config"]
    assert run(tmp_path, file, *flags) == 0
    stages = yaml.safe_load(capsys.readouterr().out)["stages"]
    assert [stage["steps"] for stage in stages] == [7, 7]
    assert [stage["model"] for stage in stages] == ["smollm2", "stage:sft"]
    assert run(tmp_path, file, "--algorithm", "dpo") == 2
    assert "whose stages say their algorithms" in capsys.readouterr().err


def test_a_pipeline_cannot_go_on_with_other_settings(tmp_path, capsys):
    file = written(tmp_path, SFT)
    assert run(tmp_path, file) == 0
    assert run(tmp_path, file, "--resume", "--seed", 3) == 2
    assert "was started with seed 0 in stage sft, not 3" in capsys.readouterr().err


def test_stages_that_have_not_begun_may_be_put_right(tmp_path, capsys):
    assert (
        run(tmp_path, written(tmp_path, SFT, {"algorithm": "grpo", "optimizer.train_layers": 9}))
        == 2
    )
    assert "stage grpo: optimizer.train_layers must be at most" in capsys.readouterr().err
    put_right = written(tmp_path, SFT, {"algorithm": "grpo", "optimizer.train_layers": 1})
    assert run(tmp_path, put_right, "--resume") == 0
    assert "stage 1 of 2, sft: done before" in capsys.readouterr().out
    begun = written(
        tmp_path, {**SFT, "seed": 3}, {"algorithm": "grpo", "optimizer.train_layers": 1}
    )
    assert run(tmp_path, begun, "--resume") == 2
    assert "was started with seed 0 in stage sft, not 3" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("--name", "../x"), ("--output.dir", "/dev/null")])
def test_a_place_that_cannot_hold_a_pipeline_is_one_sentence(tmp_path, capsys, flag, value):
    assert run(tmp_path, written(tmp_path, SFT), flag, value) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_printing_the_settings_of_a_pipeline_that_has_begun_runs_nothing(tmp_path, capsys):
    assert (
        run(tmp_path, written(tmp_path, SFT, {"algorithm": "grpo", "optimizer.train_layers": 9}))
        == 2
    )
    capsys.readouterr()
    folder = tmp_path / "runs" / "short"
    assert cli.main(["train", "--resume", str(folder), "--print-config"]) == 0
    assert len(yaml.safe_load(capsys.readouterr().out)["stages"]) == 2


def test_a_module_called_stage_is_no_stage(tmp_path):
    configs = [grpo_settings(tmp_path, name="sft", reward__functions="my.stage:reward")]
    assert [stage.name for stage in pipeline.plan(tmp_path / "p", configs)] == ["sft"]


def test_a_stage_says_that_it_is_in_a_pipeline_when_it_is_stopped(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise UserError("stopped", code=130)

    monkeypatch.setattr(pipeline, "train", stopped)
    configs = [grpo_settings(tmp_path, name="sft")]
    with pytest.raises(UserError, match="stage sft: stopped; .*--resume .*/p$") as caught:
        pipeline.run_pipeline(tmp_path / "p", configs)
    assert caught.value.code == 130


def test_a_key_of_all_stages_goes_to_those_that_read_it_and_one_must(tmp_path, capsys):
    file = written(tmp_path, SFT, PPO, **{"critic.warmup": 1, "rollout.group_size": 4})
    assert run(tmp_path, file, "--print-config", "--critic.lr", "0.5") == 0, capsys.readouterr().err
    first, second = yaml.safe_load(capsys.readouterr().out)["stages"]
    assert "critic" not in first and second["critic"]["warmup"] == 1
    assert second["critic"]["lr"] == 0.5 and second["rollout"]["group_size"] == 4
    assert run(tmp_path, file, "--pairs.items", "8") == 2
    assert "flags: pairs.items is not read by any stage" in capsys.readouterr().err
    unread = written(tmp_path, SFT, {"algorithm": "grpo"}, **{"critic.warmup": 1})
    assert run(tmp_path, unread) == 2
    assert "short.yaml: critic.warmup is not read by any stage" in capsys.readouterr().err


def grpo_settings(tmp_path, **changes):
    common = Layer("here", {**COMMON, "output.dir": str(tmp_path)}, shared=True)
    return changed(resolved(common).settings, **changes)
