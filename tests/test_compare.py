# SPDX-License-Identifier: Apache-2.0
"""Comparisons: what is run, what is kept of it, and what happens when a run fails."""

import json
from pathlib import Path

import pytest
import trainer_helpers

from rlkern.algorithms import declarations
from rlkern.cli import main
from rlkern.compare import measure, record
from rlkern.compare.plan import Comparison, load, runs, starts
from rlkern.trainer import UserError

START = {"algorithm": "reinforce", "sft.steps": 2, "sft.target": 0.0, "eval.items": 8, "steps": 1}
TINY = {"steps": 4, "batch.prompts": 4, "rollout.group_size": 4, "eval.items": 8, "eval.every": 2}
RECIPES = trainer_helpers.ROOT / "configs" / "algorithms"
COMMON = {"device": "cpu", "threads": 1, "reward.degenerate_limit": 0, "eval.modes": ["sampled"]}


def comparison(**changes):
    """Returns a comparison of seconds, with changes."""
    given = {"start": {**COMMON, **START}, "shared": {**COMMON, **TINY}, "seeds": [0]}
    if "algorithms" not in changes:  # all of them, which some settings alone do not fit
        given.update(shared=COMMON, recipes=str(RECIPES))
    given.update(changes)
    return Comparison(**given)


def yaml_of(settings, path):
    """Writes a comparison; JSON is YAML."""
    path.write_text(json.dumps(vars(settings)))
    return path


def test_all_algorithms_of_a_seed_start_from_one_checkpoint():
    planned = runs(comparison(algorithms=["rloo", "grpo"], seeds=[3, 4]))
    by_seed = {seed: {p.run.model for p in planned if p.seed == seed} for seed in (3, 4)}
    assert [len(models) for models in by_seed.values()] == [1, 1]
    assert by_seed[3] != by_seed[4]
    assert all(p.run.sft is None for p in planned)
    assert {p.run.seed for p in planned if p.seed == 4} == {4}


def test_every_registered_algorithm_is_compared_unless_some_are_named():
    assert {p.algorithm for p in runs(comparison())} == set(declarations())


def recipes(folder, **own):
    """Writes a recipe for each algorithm; returns their folder."""
    for name, settings in own.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"algorithm": name, **settings}))
    return str(folder)


def test_shared_settings_go_over_those_of_a_recipe_whose_supervised_stage_is_the_starts(tmp_path):
    folder = recipes(
        tmp_path, grpo={"optimizer.lr": 0.5, "sft.steps": 9, "sft.lr": 3.0}, rloo={"steps": 9}
    )
    settings = comparison(algorithms=["grpo", "rloo"], recipes=folder)
    planned = runs(settings)
    found = [(p.run.optimizer.lr, p.run.steps, p.run.sft) for p in planned]
    assert found == [(0.5, 4, None), (planned[1].run.optimizer.lr, 4, None)]
    assert planned[1].run.optimizer.lr != 0.5
    assert not [key for key in planned[0].settings if key.startswith("sft.")]


def test_a_recipe_that_is_missing_or_of_another_algorithm_is_refused(tmp_path):
    folder = recipes(tmp_path, rloo={"algorithm": "grpo"})
    with pytest.raises(UserError, match="rloo.yaml: algorithm must be rloo, got 'grpo'"):
        runs(comparison(algorithms=["rloo"], recipes=folder))
    with pytest.raises(UserError, match="gspo.yaml cannot be read as a recipe"):
        runs(comparison(algorithms=["gspo"], recipes=folder))


def test_a_pipeline_is_run_from_its_file_and_its_last_stage_is_what_counts(tmp_path):
    file = tmp_path / "rlhf.yaml"
    file.write_text("stages: [{algorithm: sft}, {algorithm: ppo}]")
    settings = comparison(pipelines={"rlhf": str(file)}, seeds=[5], runs_dir=str(tmp_path))
    planned = runs(settings)[-1]
    assert planned.label == "rlhf-5"
    assert planned.arguments[:4] == ["--config", str(file), "--seed", "5"]
    assert planned.arguments[4:] == ["--output.dir", str(tmp_path), "--name", planned.folder.name]
    for stage in ("2-sft", "10-ppo", "9-reward_model"):
        (planned.folder / stage).mkdir(parents=True)
    assert planned.measured.name == "10-ppo"
    assert not [p for p in runs(comparison(algorithms=["grpo"])) if p.file]


def test_the_record_of_a_pipeline_holds_what_each_stage_did(tmp_path):
    file = tmp_path / "rlhf.yaml"
    file.write_text("stages: [{algorithm: reward_model}, {algorithm: ppo}]")
    settings = comparison(pipelines={"rlhf": str(file)}, seeds=[5], runs_dir=str(tmp_path))
    planned = runs(settings)[-1]
    for stage, name, after in (("1-reward_model", "reward_model", 0.9), ("2-ppo", "ppo", 0.4)):
        folder = planned.folder / stage
        folder.mkdir(parents=True)
        said = {"algorithm": name, "eval/accuracy_before": 0.25, "eval/accuracy_after": after}
        (folder / "summary.json").write_text(json.dumps(said))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "eval/accuracy": after}))
    path = record.write(tmp_path / "records", planned, jobs=1, cost={"wall_seconds": 1.0})
    *_, summary = record.read(path)
    assert summary["stages"] == [
        {"stage": "reward_model", "before": 0.25, "after": 0.9},
        {"stage": "ppo", "before": 0.25, "after": 0.4},
    ]


def test_runs_of_other_settings_get_another_folder_and_no_record_of_the_first(tmp_path):
    (first,) = runs(comparison(algorithms=["grpo"]))
    (other,) = runs(comparison(algorithms=["grpo"], shared={**COMMON, **TINY, "optimizer.lr": 0.1}))
    start = {**COMMON, **START, "sft.steps": 3}
    (later,) = runs(comparison(algorithms=["grpo"], start=start))
    assert len({first.folder, other.folder, later.folder}) == 3
    head = {"settings": first.settings, "start": first.start}
    (tmp_path / "grpo-0.jsonl").write_text(f"{json.dumps(head)}\n{json.dumps({'step': 0})}\n")
    assert not record.is_recorded(tmp_path, first), "it has no summary: the run was cut short"
    whole = [head, {"step": 0}, {"wall_seconds": 1.0}]
    (tmp_path / "grpo-0.jsonl").write_text("\n".join(map(json.dumps, whole)))
    assert record.is_recorded(tmp_path, first)
    assert not record.is_recorded(tmp_path, other) and not record.is_recorded(tmp_path, later)


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"algorithms": ["gpro"]}, "there is no algorithm 'gpro'"),
        ({"notes": {"gpro": "?"}}, "there is no algorithm 'gpro'"),
        ({"shared": {"stepz": 1}}, "shared: there is no key 'stepz'; did you mean steps"),
        ({"shared": {"steps": 0}}, "shared: steps must be a whole number, at least 1"),
        ({"start": {**COMMON, "sft": None}}, "start of the comparison must set sft.steps"),
        ({"seeds": [0, 0]}, "seeds must differ"),
        (
            {"shared": {"rollout.group_size": 1}, "algorithms": ["grpo"]},
            "rollout.group_size must be at least 2",
        ),
        ({"pipelines": {"grpo": "x.yaml"}}, "must not be called as an algorithm is, got 'grpo'"),
        ({"pipelines": {"rlhf": "missing.yaml"}}, "missing.yaml cannot be read as a pipeline"),
    ],
)
def test_a_comparison_that_cannot_work_is_refused_before_a_run(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        runs(comparison(**changes))


@pytest.mark.parametrize(
    "text,sentence",
    [
        ("- a", "must hold key: value lines"),
        ("algorithm: [grpo]", "unknown key 'algorithm'"),
        ("jobs: two", "jobs must be a whole number, got 'two'"),
        ("algorithms: grpo", "algorithms must be a list of texts, got 'grpo'"),
        ("a: [", "cannot be read as a comparison"),
    ],
)
def test_a_file_that_is_no_comparison_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "compare.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load(path)


def test_the_shipped_comparison_is_one_of_all_algorithms_and_three_seeds():
    shipped = load(trainer_helpers.ROOT / "configs" / "compare.yaml")
    assert shipped.algorithms == [] and len(shipped.seeds) == 3
    assert len(runs(shipped)) >= 3 * 30 and len(starts(shipped)) == 3


def test_every_algorithm_has_a_recipe_in_configs():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(declarations())


def test_a_point_holds_the_means_since_the_last_evaluation_and_the_counts_so_far():
    lines = [
        {"step": 0, "eval/accuracy": 0.1, "seconds": 0.5},
        {"step": 1, "reward": 0.2, "sampling/generated_tokens": 10, "time/loss": 3.0},
        {"step": 2, "reward": 0.4, "sampling/generated_tokens": 30, "eval/accuracy": 0.3},
        {"step": 3, "reward": 0.9},
    ]
    for line in lines[1:]:
        line["rewards/exact_match/mean"] = line.get("reward", 0.0)
    assert record.points(lines) == [
        {"step": 0, "eval/accuracy": 0.1, "seconds": 0.5},
        {
            "step": 2,
            "eval/accuracy": 0.3,
            "reward": pytest.approx(0.3),
            "sampling/generated_tokens": 30,
        },
    ]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Returns the folder and the two outcomes of a comparison one of whose runs always fails."""
    folder = tmp_path_factory.mktemp("compare")
    settings = comparison(
        algorithms=["sapo", "grpo"],
        jobs=2,
        recipes=recipes(folder, sapo={"rollout.max_new_tokens": 600}, grpo={}),
        runs_dir=str(folder / "runs"),
        records=str(folder / "records"),
        out=str(folder / "docs"),
    )
    path = yaml_of(settings, folder / "compare.yaml")
    return folder, *(_said(folder, "compare", "--config", path) for _ in range(2))


def _said(folder, *arguments):
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main([*map(str, arguments)])
    return code, output.getvalue()


def test_a_run_that_fails_is_reported_and_does_not_stop_the_others(compared):
    folder, (code, said), _ = compared
    assert code == 1
    assert "sapo-0: failed with exit code 2" in said and "do not fit the model" in said
    assert "1 runs failed: sapo-0" in said
    assert [path.name for path in (folder / "records").iterdir()] == ["grpo-0.jsonl"]


def test_runs_on_record_are_skipped_and_the_rest_is_run_again(compared):
    _, (_, first), (code, second) = compared
    assert "start-0: ready" in first and "start-0" not in second
    assert "1 runs are on record" in second and "grpo-0:" not in second
    assert "sapo-0: failed" in second and code == 1


def test_a_record_holds_the_curve_and_what_the_process_cost(compared):
    folder, *_ = compared
    (run,) = measure.load(folder / "records")["grpo"]
    assert run.curve("eval/accuracy")[0] == [0, 2, 4]
    assert run.last("sampling/generated_tokens") > 0 and run.last("seconds") > 0
    assert 0 <= run.mean("frac_reward_zero_std") <= 1
    assert run.summary["wall_seconds"] > run.last("seconds")
    assert 0 < run.summary["cpu_seconds"]
    assert 50 * 2**20 < run.summary["peak_bytes"] < 4 * 2**30
    text = (folder / "records" / "grpo-0.jsonl").read_text()
    assert str(folder) not in text and len(text) < 4000
    assert run.head["settings"]["steps"] == 4 and run.head["start"]["sft.steps"] == 2


def test_a_comparison_writes_the_pages_and_figures_of_what_ran(compared):
    folder, *_ = compared
    text = (folder / "docs" / "algorithms.md").read_text()
    assert "![Held-out accuracy of every algorithm](algorithms.png)" in text
    for path in ("algorithms.png", "algorithms/grpo.png", "algorithms/grpo.md"):
        assert (folder / "docs" / path).stat().st_size > 1000, path
    assert not Path(folder / "docs" / "algorithms" / "sapo.png").exists()
    assert "No run is on record" in (folder / "docs" / "algorithms" / "sapo.md").read_text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shared": {"critic.lr": 3.0}}, ", shared: critic.lr is not read by any algorithm"),
        ({"shared": {"seed": 7}}, ", shared: a comparison sets seed itself, by seeds"),
        ({"shared": {"sft": {"steps": 7}}}, ", shared: a comparison sets sft.steps itself, by"),
        ({"shared": {"model": "x"}}, ", shared: a comparison sets model itself, by start.model"),
        ({"shared": {"output": {"dir": "x"}}}, "sets output.dir itself, by runs_dir"),
        ({"start": {**START, "seed": 7}}, ", start: a comparison sets seed itself, by seeds"),
        ({"pipelines": {"x": "y.yaml"}}, "pipelines are run beside all algorithms, not beside"),
        ({"algorithms": ["grpo", "grpo"]}, "algorithms must differ from each other"),
        ({"algorithms": [3]}, "algorithms must be a list of texts, got [3]"),
        ({"notes": {"grpo": 3}}, "notes must be key: value lines of texts, got {'grpo': 3}"),
    ],
)
def test_a_comparison_gives_nothing_that_no_run_reads(changes, sentence, tmp_path):
    given = {"algorithms": ["grpo", "rloo"], "start": {**COMMON, **START}, "shared": COMMON}
    file = tmp_path / "compare.yaml"
    file.write_text(json.dumps({**given, **changes}))
    with pytest.raises(UserError) as caught:
        load(file)
    assert sentence in str(caught.value)
    shared = {**COMMON, "critic.lr": 3.0}  # read by one of the two
    file.write_text(json.dumps({**given, "algorithms": ["grpo", "ppo"], "shared": shared}))
    assert load(file).shared == shared


@pytest.mark.parametrize("flag", [["--seeds", "1,,2"], ["--seeds", ""], ["--algorithms", "grpo,"]])
def test_an_empty_part_of_a_list_of_a_comparison_is_refused(flag, tmp_path, capsys):
    file = yaml_of(comparison(algorithms=["grpo"]), tmp_path / "compare.yaml")
    assert main(["compare", "--config", str(file), *flag]) == 2
    assert f"with commas between, got {flag[1]!r}" in capsys.readouterr().err
