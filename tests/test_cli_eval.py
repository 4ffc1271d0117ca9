# SPDX-License-Identifier: Apache-2.0
"""`rlkern eval`: what it is pointed at, what it counts, what it prints."""

import json
import re
import shutil
from pathlib import Path

import pytest
from data_helpers import data_file
from trainer_helpers import any_algorithm, small

import rlkern
from rlkern import cli
from rlkern.runs import best
from rlkern.runs.logs import read_metrics
from rlkern.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the directory of a run whose best checkpoint is not its newest."""
    folder = tmp_path_factory.mktemp("eval")
    config = small(
        folder,
        name="run",
        reward__functions="task",
        steps=3,
        optimizer__lr=1e-4,
        sft__steps=400,  # enough for some right answers, whatever the machine rounds
        sft__batch=64,
        eval__items=30,
        eval__every=1,
    )
    with rlkern.use_backend("eager"):
        train(config)
    found = folder / "runs" / "run"
    first = {"eval/accuracy": 2.0}
    assert best.keep(
        found, 2, first, lambda to: shutil.copytree(found / "checkpoint-2", to, dirs_exist_ok=True)
    )
    return found


def evaluated(capsys, *arguments):
    """Returns what one line of JSON says."""
    code = cli.main(["eval", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def refused(capsys, *arguments):
    """Returns the sentence of a refusal."""
    assert cli.main(["eval", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("rlkern eval: ") and captured.err.count("\n") == 1
    assert not captured.out
    return captured.err


def test_the_newest_checkpoint_has_the_accuracy_that_the_run_ended_with(capsys, run):
    found = evaluated(capsys, run, "--checkpoint", "newest")
    last = read_metrics(run)[-1]
    for mode in ("sampled", "greedy"):
        assert found[f"eval/accuracy_{mode}"] == pytest.approx(last[f"eval/accuracy_{mode}"])
    assert 0 < found["eval/accuracy_sampled"] < 1
    assert found["label"] == "run, checkpoint-3" and found["items"] == 30


def test_a_run_is_evaluated_at_its_best_and_its_folders_are_what_they_are(capsys, run):
    by_run = evaluated(capsys, run)
    assert by_run["label"] == "run, best (step 2)"
    asked = [evaluated(capsys, run / "checkpoint-2"), evaluated(capsys, run, "--checkpoint", 2)]
    asked += [evaluated(capsys, run / "best"), evaluated(capsys, run / "best-2")]
    for found in asked:
        assert found["eval/accuracy_sampled"] == by_run["eval/accuracy_sampled"]


def test_more_samples_give_pass_at_k_with_its_standard_error(capsys, run):
    found = evaluated(capsys, run, "--samples", 6, "--pass-at", "1,3,6", "--modes", "sampled")
    assert found["eval/pass@1"] == pytest.approx(found["eval/accuracy_sampled"])
    assert found["eval/pass@1"] < found["eval/pass@3"] < found["eval/pass@6"]
    assert found["eval/pass@1_error"] == pytest.approx(found["eval/accuracy_sampled_error"])
    assert 0 < found["eval/pass@3_error"] < 0.2
    assert "eval/accuracy_greedy" not in found
    assert "eval/pass@4" in evaluated(capsys, run, "--samples", 4)


def test_a_model_that_is_of_no_run_is_asked_a_named_task(capsys, run, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(run / "checkpoint-2", model, ignore=shutil.ignore_patterns("trainer.json"))
    assert "so --task must say what it is asked" in refused(capsys, model)
    found = evaluated(capsys, model, "--task", "addition", "--items", 50)
    assert found["items"] == 50 and found["seed"] == 0


def test_the_tables_show_accuracies_and_answers(capsys, run):
    assert cli.main(["eval", str(run), "--samples", "2", "--show", "30"]) == 0
    out = capsys.readouterr().out
    assert "run, best (step 2): addition, 30 held-out items" in " ".join(out.split())
    assert re.search(r"accuracy, sampled, 2 for each\s+.\s+0\.\d{3}\s+.\s+0\.\d{3}", out)
    assert re.search(r"'\d\d\+\d\d='\s+.\s+'\d{1,4}'\s+.\s+yes", out)
    assert re.search(r"no: \d{3}", out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--items", 31], "items must be at most the 30 that run, best .* held out, got 31"),
        (["--checkpoint", 1], r"newest or a step that .* kept \(2, 3\), got '1'"),
        (["--pass_at", 2], "eval.pass_at must be from 1 to eval.samples"),
        (
            ["--modes", "sampeld"],
            "eval.modes must be sampled, greedy or both, got 'sampeld'; did you mean sampled",
        ),
        (["--temperature", 0], "flags: rollout.temperature must be a finite number, at least 1e-4"),
        (["--samples", "x"], "eval.samples must be a whole number, at least 1, got 'x'"),
        (["--samples", 4, "--modes", "greedy"], "eval.samples must be 1 if eval.modes is greedy"),
        (["--task", "adition"], "there is no task 'adition'"),
        (["--samplez", 3], "there is no flag --samplez; did you mean --samples"),
        (["--sample", 3], "there is no flag --sample; did you mean --samples"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(map(str, value)),
)
def test_a_mistake_is_one_sentence(capsys, run, arguments, sentence):
    assert re.search(sentence, refused(capsys, run, *arguments))


def test_what_cannot_be_evaluated_says_why(capsys, run, tmp_path):
    assert "there is no model" in refused(capsys, tmp_path / "none", "--task", "addition")
    assert "there is no model" in refused(capsys, tmp_path / "none")
    assert "tiny is no run directory, so --task must say" in refused(capsys, "tiny")
    assert "the following arguments are required: target" in refused(capsys)
    (tmp_path / "p" / "1-sft").mkdir(parents=True)
    (tmp_path / "p" / "pipeline.yaml").touch()
    (tmp_path / "p" / "1-sft" / "config.yaml").write_text("algorithm: reward_model\n")
    assert re.search("holds a pipeline: .* stages, .*1-sft", refused(capsys, tmp_path / "p"))
    assert "holds no checkpoint yet" in refused(capsys, tmp_path / "p" / "1-sft")
    (tmp_path / "p" / "1-sft" / "config.yaml").write_text("algorithm: grpo\n")
    assert "holds no checkpoint yet" in refused(capsys, tmp_path / "p" / "1-sft")


OF_ROWS = {
    "sampled pairs": {"algorithm": "dpo", "batch__prompts": 4, "pairs__items": 40},
    "pairs, adapters": {"algorithm": "dpo", "data__train": "pairs", "lora__rank": 4},
    "labels": {"algorithm": "kto", "data__train": "labels"},
    "scores": {"algorithm": "reward_model", "data__train": "pairs"},
    "answers": {"algorithm": "sft", "data__train": "completions"},
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_what_a_run_measures_on_rows_of_its_own_is_printed_again(capsys, tmp_path, name):
    given = dict(OF_ROWS[name])
    if "data__train" in given:
        given["data__train"] = str(data_file(tmp_path, given["data__train"]))
    with rlkern.use_backend("eager"):
        train(any_algorithm(tmp_path, name="run", steps=2, eval__items=10, **given))
        capsys.readouterr()
        run = tmp_path / "runs" / "run"
        found = evaluated(capsys, run, "--checkpoint", "newest", "--eval_batch", 4)
    last = {key: x for key, x in read_metrics(run)[-1].items() if key.startswith("eval/")}
    if name == "sampled pairs":  # what is answered is measured, too
        assert last.pop("eval/accuracy") == pytest.approx(last["eval/pair_accuracy"])
        assert "eval/accuracy_sampled" in last
    else:
        assert "samples is not read; leave it out" in refused(capsys, run, "--samples", 4)
    assert {"eval/loss", "eval/pair_margin"} & last.keys()
    assert {key: found[key] for key in last} == pytest.approx(last, rel=1e-4, abs=1e-6)
    if "data__train" in given:  # other rows would give another number under the same name
        path = Path(given["data__train"])
        path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
        assert "has changed since the run began" in refused(capsys, run)


def test_adapters_are_evaluated_with_the_model_they_belong_to(capsys, run, tmp_path):
    model = run / "checkpoint-3"
    with rlkern.use_backend("eager"):
        train(small(tmp_path, name="lora", model=str(model), steps=2, sft=None, lora__rank=4))
    capsys.readouterr()
    lora = tmp_path / "runs" / "lora"
    found = evaluated(capsys, lora, "--checkpoint", "newest")
    assert found["eval/accuracy_sampled"] == pytest.approx(
        read_metrics(lora)[-1]["eval/accuracy_sampled"]
    )
    assert evaluated(capsys, lora)["label"].startswith("lora, best")


def test_help_names_every_option(capsys):
    assert cli.main(["eval", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{word}" in out for word in "checkpoint task items samples pass_at json".split())
