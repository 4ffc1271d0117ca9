# SPDX-License-Identifier: Apache-2.0
"""The control suite, for every algorithm that its folder holds: nothing here names one."""

import json
import shutil

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from control_helpers import run  # noqa: E402
from safetensors import SafetensorError  # noqa: E402

from rlkern import cli  # noqa: E402
from rlkern.control import algorithms, checkpoint, of  # noqa: E402
from rlkern.control.environments import Environments  # noqa: E402
from rlkern.control.suits import unsuited  # noqa: E402
from rlkern.runs.errors import UserError  # noqa: E402
from rlkern.runs.folder import all_checkpoints  # noqa: E402
from rlkern.runs.logs import read_metrics  # noqa: E402

PLACES = ("CliffWalking-v1", "RandomWalk5-v0", "CartPole-v1", "Pendulum-v1")
TIMES = ("charts/SPS", "seconds")


def place_of(name: str) -> str:
    """Returns an environment in which an algorithm can act."""
    for place in PLACES:
        environments = Environments(place, {}, 1, 0)
        try:
            if unsuited(algorithms()[name], environments) is None:
                return place
        finally:
            environments.close()
    raise AssertionError(f"{name} can act in none of {PLACES}")


def lines(folder) -> list[dict]:
    found = read_metrics(folder)
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def table(folder) -> dict:
    saved = all_checkpoints(folder)[-1]
    return json.loads((saved / checkpoint.STATE).read_text())["tree"], (
        saved / checkpoint.TENSORS
    ).read_bytes()


def same_state(a, b) -> bool:
    """Returns whether two checkpoints hold the same, times apart."""
    (mine, bytes_a), (its, bytes_b) = a, b
    strip = [[p for p in tree["pairs"] if p[0] != "progress"] for tree in (mine, its)]
    return strip[0] == strip[1] and bytes_a == bytes_b


def short(name: str, **more) -> dict:
    """Returns the settings of a run of a second: its recipe, and over it what makes it quick."""
    return {"algorithm": name, "env": place_of(name), "steps": 600, "log_every": 100,
            "eval_every": 300, "eval_episodes": 1, **algorithms()[name].quick, **more}  # fmt: skip


class Killed(Exception):
    pass


REPEATING = [name for name, each in algorithms().items() if each.repeats]


@pytest.mark.parametrize("name", REPEATING)
def test_a_killed_run_goes_on_as_if_it_had_not_been(name, tmp_path, monkeypatch):
    settings = short(name, save_every=200)
    run(tmp_path / "a", **settings, name="x")
    step = Environments.step

    def stepping(self, action):
        if self.steps >= 450:
            raise Killed
        return step(self, action)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Environments, "step", stepping)
        run(tmp_path / "b", **settings, name="x")
    run(tmp_path / "b", **settings, name="x", resume=True)
    assert lines(tmp_path / "a" / "x") == lines(tmp_path / "b" / "x")
    assert same_state(table(tmp_path / "a" / "x"), table(tmp_path / "b" / "x"))


@pytest.mark.parametrize("name", REPEATING)
def test_a_run_killed_after_its_last_checkpoint_has_only_its_end_to_make(
    name, tmp_path, monkeypatch
):
    settings = short(name, log=[])
    whole = run(tmp_path / "a", **settings, name="x")

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("rlkern.control.loop.draw", killed)
        run(tmp_path / "b", **settings, name="x")
    after = run(tmp_path / "b", **settings, name="x", resume=True)
    assert {**after, "wall_seconds": 0} == {**whole, "wall_seconds": 0}
    assert lines(tmp_path / "a" / "x") == lines(tmp_path / "b" / "x")
    assert same_state(table(tmp_path / "a" / "x"), table(tmp_path / "b" / "x"))


def test_the_true_last_observation_is_given_and_the_next_episode_is_begun():
    environments = Environments("Countdown-v0", {}, 2, seed=0)
    for _ in range(2):
        found = environments.step(np.array([0, 0]))
        assert not found.terminated.any() and not found.truncated.any()
    found = environments.step(np.array([0, 0]))
    assert found.terminated.all() and not found.truncated.any()
    assert found.next.tolist() == [[3.0], [3.0]]
    assert environments.observation.tolist() == [[0.0], [0.0]]
    assert [tuple(each) for each in environments.finished] == [(3.0, 3), (3.0, 3)]


def test_a_time_limit_truncates_and_does_not_terminate():
    environments = Environments("Truncated-v0", {}, 1, seed=0)
    environments.step(np.array([0]))
    found = environments.step(np.array([0]))
    assert found.truncated.all() and not found.terminated.any()
    assert found.next.tolist() == [[2.0]]


def test_an_environment_that_does_not_repeat_itself_is_not_resumed():
    environments = Environments("Unrepeatable-v0", {}, 1, seed=0)
    state = environments.state()
    with pytest.raises(UserError, match="does not repeat itself"):
        Environments("Unrepeatable-v0", {}, 1, seed=0).load(state)


@pytest.mark.parametrize("steps", [1, 7, 250])
def test_environments_that_are_loaded_go_on_as_the_saved_ones(steps):
    made = [Environments("CartPole-v1", {}, 3, seed=1) for _ in range(2)]
    actions = np.random.default_rng(0).integers(2, size=(steps + 50, 3))
    for action in actions[:steps]:
        made[0].step(action)
    made[1].load(made[0].state())
    for action in actions[steps:]:
        a, b = made[0].step(action), made[1].step(action)
        assert all(np.array_equal(x, y) for x, y in zip(a, b))
    assert made[0].finished == made[1].finished


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--algorithm", "q_lerning"], "did you mean q_learning"),
        (["--env", "CartPole-v1", "--algorithm", "q_learning"], "keeps a table of all states"),
        (
            ["--env", "Nowhere-v0", "--algorithm", "q_learning"],
            "env must be the id of a gymnasium environment",
        ),
        (["--algorithm", "q_learning", "--env", "Pendulum-v1"], "needs discrete actions"),
        (["--algorithm", "q_learning", "--epsilon", "2"], "epsilon must be"),
        (["--algorithm", "q_learning", "--num_envs", "2"], "num_envs must be 1"),
        (["--algorithm", "q_learning", "--epsilno", "0.2"], "did you mean --epsilon"),
        (["--algorithm", "q_learning", "--name", "a/b"], "name must be a folder name"),
        (["--resume", "nowhere"], "there is no run to resume in nowhere"),
        (
            ["--env", "RandomWalk5-v0", "--algorithm", "q_learning", "--render", "x.gif"],
            "env RandomWalk5-v0 draws no pictures; leave out --render",
        ),
        (
            ["--env", "FrozenLake-v1", "--algorithm", "sarsa", "--env_options.map_name", "9x9"],
            "env FrozenLake-v1 cannot be made with env_options {'map_name': '9x9'}: KeyError",
        ),
        (
            ["--algorithm", "sarsa", "--env_options.max_episode_steps", "-3"],
            "env CliffWalking-v1 cannot be made with env_options {'max_episode_steps': -3}: ",
        ),
        (["--algorithm", "q_learning", "--n", "3"], "q_learning does not read n; n_step_sarsa"),
        (["--algorithm", "q_learning", "--clip", "1"], "q_learning does not read clip; ppo does"),
    ],
)
def test_bad_input_gets_one_sentence_and_nothing_is_written(flags, sentence, tmp_path, capsys):
    default = [] if "--env" in flags or "--resume" in flags else ["--env", "CliffWalking-v1"]
    out = [] if "--resume" in flags else ["--output_dir", str(tmp_path)]
    assert cli.main(["control", *default, *out, *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_settings_is_not_resumed(tmp_path):
    settings = short("q_learning")
    run(tmp_path, **settings, name="x")
    with pytest.raises(UserError, match="was started with seed 0, not 1"):
        run(tmp_path, **settings, name="x", seed=1, resume=True)


def test_a_checkpoint_of_another_algorithm_is_not_gone_on_from(tmp_path):
    for name in ("q_learning", "sarsa"):
        run(tmp_path, **short(name, log=[]), name=name)
    other = all_checkpoints(tmp_path / "sarsa")[-1]
    shutil.copytree(other, tmp_path / "q_learning" / "checkpoint-601")
    with pytest.raises(UserError, match="checkpoint-601 was started with algorithm 'sarsa', not "):
        run(tmp_path, **short("q_learning", log=[], steps=900), name="q_learning", resume=True)


def test_a_full_disk_is_one_sentence(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    words = ["control", "--env", "CliffWalking-v1", "--algorithm", "q_learning", "--steps", "50"]
    assert cli.main([*words, "--eval_length", "9", "--output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "reading or writing failed: Error while serializing: I/O error" in said
    assert not all_checkpoints(tmp_path / "q_learning-CliffWalking_v1")


def test_the_recipe_of_an_environment_lies_under_what_is_given():
    name, recipe = next((a.name, a.recipes) for a in algorithms().values() if a.recipes)
    env = next(iter(recipe))
    key, value = next(iter(recipe[env].items()))
    assert getattr(of(algorithm=name, env=env), key) == value
    assert of(algorithm=name, env=env, steps=7).steps == 7


@pytest.mark.parametrize("name", algorithms())
def test_every_recipe_keeps_to_the_bounds_of_its_settings(name):
    for env, recipe in algorithms()[name].recipes.items():
        found = of(algorithm=name, env=env).model_dump(mode="json")
        assert all(found[key] == value for key, value in recipe.items()), env


# As the literature has it: what they learn of may be another policy's.
OFF_POLICY = {"q_learning", "double_q_learning", "dqn", "double_dqn"}
OFF_POLICY |= {"ddpg", "td3", "sac"}


def test_what_learns_of_another_policy_says_so():
    assert {name for name, each in algorithms().items() if not each.on_policy} == OFF_POLICY


def test_an_environment_of_ones_own_is_imported_by_its_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "corridor.py").write_text(
        "import gymnasium\n"
        "from rlkern.control.worlds.random_walk import RandomWalk\n"
        "gymnasium.register('Corridor-v0', RandomWalk, kwargs={'states': 3})\n"
    )
    summary = run(
        tmp_path, algorithm="q_learning", env="corridor:Corridor-v0", steps=200, eval_episodes=2
    )
    assert summary["eval/return"] in (0.0, 0.5, 1.0)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, capsys):
    settings = short("q_learning", save_every=200)
    run(tmp_path / "a", **settings, name="x")
    run(tmp_path / "b", **settings, name="x")
    folder = tmp_path / "b" / "x"
    before, newest = all_checkpoints(folder)
    whole = newest / "tensors.safetensors"
    whole.write_bytes(whole.read_bytes()[:10])
    run(tmp_path / "b", **settings, name="x", resume=True)
    assert (folder / f"damaged-{newest.name}").is_dir()
    assert lines(tmp_path / "a" / "x") == lines(folder)
    assert same_state(table(tmp_path / "a" / "x"), table(folder))
    for each in all_checkpoints(folder):
        (each / "control.json").write_text("{")
    with pytest.raises(UserError, match="has no whole checkpoint to go on from .*begin a new run"):
        run(tmp_path / "b", **settings, name="x", resume=True)


def test_a_run_of_the_other_trainer_is_named_as_such(tmp_path, capsys):
    run(tmp_path, **short("q_learning"), name="x")
    for command in (["train", "--resume"], ["show"], ["eval"]):
        assert cli.main([*command, str(tmp_path / "x")]) == 2
        sentence = "is a run of rlkern control, not of rlkern train"
        assert sentence in capsys.readouterr().err, command
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("algorithm: grpo\n")
    assert cli.main(["control", "--resume", str(other)]) == 2
    assert "is a run of rlkern train, not of rlkern control" in capsys.readouterr().err


def test_a_longest_evaluation_is_refused_where_the_environment_has_its_own_limit(tmp_path):
    with pytest.raises(UserError, match="eval_length is for environments without a time limit"):
        run(tmp_path, **short("dqn", env="CartPole-v1", eval_length=7))
    assert not list(tmp_path.iterdir())
