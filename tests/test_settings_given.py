# SPDX-License-Identifier: Apache-2.0
"""Nothing given is dropped: not the first of two values, not what a value makes meaningless, not an
empty part; and a file that is no settings is one sentence."""

import os

import pytest

from rlkern import cli
from rlkern.control import settings as control
from rlkern.runs.settings.yaml_file import parsed, read
from rlkern.trainer import UserError
from rlkern.trainer.settings import Layer, dump, of, resolve

TINY = ["eval", "tiny", "--task", "addition", "--items", "2"]


def refused(*words, capsys):
    """Returns the one sentence that refuses a command line."""
    assert cli.main([str(word) for word in words]) == 2
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps", 1, "--steps", 2], "--steps is given twice; leave one out"),
        (["--steps", 1, "--steps=2"], "--steps is given twice"),
        (["--rollout.top-k", 1, "--rollout.top_k", 2], "--rollout.top_k is given twice"),
        (["--config", "a", "--config", "b"], "--config is given twice"),
        (["--log", "wandb", "--output.log", "mlflow"], "--log and --output.log are the same"),
        (
            ["--optimizer", 1, "--optimizer.lr", 2],
            "flags: optimizer.lr is given twice, '1' and '2'",
        ),
        (
            ["--lora", "null", "--lora.rank", 2],
            "flags: lora is given twice, null and {'rank': '2'}",
        ),
        (
            ["--lora.rank", 2, "--lora", "null"],
            "flags: lora is given twice, {'rank': '2'} and null",
        ),
        (
            ["--coefficients.clip_low", 1, "--coefficients.clip_low", 2],
            "--coefficients.clip_low is given twice",
        ),
        (
            ["--coefficients", "{clip_low: 1}", "--coefficients.clip_low", 2],
            "flags: coefficients.clip_low is given twice",
        ),
        (["--coefficients.", 1], "there is no flag --coefficients."),
        (["--coefficients.clip_low", "--seed", 1], "argument --coefficients.clip_low: expected"),
        (["--eval.pass_at", "1,,4"], "eval.pass_at must be whole numbers from 1, got '1,,4'"),
        (["--reward", "task,"], "reward.functions must be at least one name, got 'task,'"),
        (["--eval.modes", "greedy,greedy"], "eval.modes must be sampled, greedy or both, got"),
        (["--log", "tensorboard,tensorboard"], "mlflow, each once, got 'tensorboard,tensorboard'"),
        (["--log", "none"], "output.log must be names among"),
        (["--steps", "none"], "steps must be a whole number, at least 1, got 'none'"),
        (["--optimizer.lr", "-1e-3"], "optimizer.lr must be a finite number above 0, got '-1e-3'"),
        (
            ["--data.stop", "-x"],
            "expected one argument; one that begins with - is written --data.s",
        ),
        (["--algorithm", "GRPO"], "there is no algorithm 'GRPO'; did you mean grpo"),
        (["--name", "a/b"], "flags: name must be a folder name without slashes, got 'a/b'"),
        (["--output.dir", "a\0b"], "flags: output.dir must be readable text, got 'a\\x00b'"),
        (["--name", os.fsdecode(b"\xff")], "flags: name must be readable text, got '\\udcff'"),
        (["--config", ""], "cannot be read as settings"),
        (["--show", 2, "--print_config"], "show must be at least 1, and not with"),
    ],
)
def test_what_would_be_dropped_is_refused(words, sentence, capsys):
    stop = [] if "--print_config" in words else ["--print_config"]  # before it trains, if it does
    assert sentence in refused("train", *words, *stop, capsys=capsys)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"batch.epochs": 2, "batch": {"epochs": 3}},
            "batch.epochs is given twice, 2 and 3; leave",
        ),
        ({"batch": {"epochs": 3}, "batch.epochs": 2}, "batch.epochs is given twice, 3 and 2"),
        ({"optimizer": 1e-3, "optimizer.lr": 1e-2}, "optimizer.lr is given twice"),
        ({"lora": None, "lora.rank": 2}, "lora is given twice, null and {'rank': 2}"),
        ({"coefficients": {"clip_low": 1}, "coefficients.clip_low": 2}, "clip_low is given twice"),
        ({"stepz": None}, "there is no key 'stepz'; did you mean steps"),
        ({"batch": {"promps": None}}, "there is no key 'batch.promps'"),
        ({"steps.": 3}, "there is no key 'steps.'"),
        ({".steps": 3}, "there is no key '.steps'"),
        ({"batch": {"prompts.": 3}}, "there is no key 'batch.prompts.'"),
    ],
)
def test_a_key_of_a_file_is_there_once_and_exists(values, sentence):
    with pytest.raises(UserError) as caught:
        resolve(Layer("some.yaml", values))
    assert str(caught.value).startswith("some.yaml: ") and sentence in str(caught.value)


def test_null_takes_back_what_a_layer_below_gives():
    file = Layer("file", {"steps": 5, "task": "x", "data.shots": 3, "batch": {"epochs": 2}})
    over = Layer("flags", {"steps": "null", "data.shots": None, "batch": None})
    found = resolve(file, over)
    assert (found.steps, found.data.shots, found.batch.epochs) == (100, None, 1)
    assert resolve(file, over, Layer("more", {"steps": 4, "batch.epochs": 3})).steps == 4
    game = Layer("file", {"algorithm": "q_learning", "steps": 7, "seed": 2})
    assert control.resolve(game, Layer("flags", {"steps": None})).steps == 100_000
    assert control.resolve(game, Layer("flags", {"algorithm": None, "seed": 1})).algorithm == "ppo"


def test_only_what_may_be_null_takes_none_for_it():
    own = of(
        **{"data.train": "x.jsonl", "data.stop": "none", "data.system": "none", "lora": "none"}
    )
    assert (own.data.stop, own.data.system, own.lora) == ("none", None, None)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"reward.timeout": 3}, "reward.timeout is for a function of your own"),
        ({"reward.workers": 2, "reward": "math,regex:a:b"}, "reward.workers is for a function of"),
        (
            {"algorithm": "sft", "sft": None, "eval.modes": "greedy", "rollout.top_k": 5},
            "rollout.top_k is for sampled answers, and algorithm sft with eval.modes greedy",
        ),
        ({"loss": "eager", "loss.compare": "eager"}, "loss.compare eager is the loss.path of the"),
        (
            {"coefficients.kl_estimator": "k2"},
            "coefficients.kl_estimator is of the KL term, whose coefficients.kl_coef must not be 0",
        ),
        ({"coefficients.kl_max": 3}, "coefficients.kl_max is of the KL term"),
    ],
)
def test_a_value_that_another_makes_meaningless_is_refused(values, sentence):
    with pytest.raises(UserError) as caught:
        of(**values)
    assert sentence in str(caught.value)


def test_the_same_values_are_taken_where_they_mean_something():
    limits = {"reward": "a.b:f", "reward.timeout": 3, "reward.workers": 2}
    assert of(**limits).reward.workers == 2
    assert of(algorithm="sft", **{"eval.modes": "greedy", "rollout.top_k": 5}).rollout.top_k == 5
    of(**{"eval.modes": "greedy", "rollout.top_k": 5, "loss.compare": "eager"})
    of(**{"coefficients.kl_estimator": "k2", "coefficients.kl_coef": 0.1})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("seed: 1" + "0" * 5000, "Exceeds the limit"),
        ("[" * 3000, "it is nested too deeply"),
        ("data.options: &own {a: *own}", "found unconstructable recursive node"),
        ("", "must hold key: value lines, it is empty"),
        ("--- \n# nothing\n", "must hold key: value lines, it is empty"),
        ("steps: 1\n---\nsteps: 2\n", "expected a single document"),
        ("batch: {<<: {epochs: 1}, epochs: 2, epochs: 3}", "the key 'epochs' is given twice"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(text, what, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=what) as caught:
        read(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_file_means_what_the_same_flags_mean(tmp_path, capsys):
    """YAML 1.1 reads 010 as 8, 1:30 as 90, a date as no text and 1e3 as a text."""
    texts = ("010", "1_000", "1e3", "7", "0")
    flags = [of(seed=text).seed for text in texts]
    assert flags == [of(**parsed(f"seed: {text}")).seed for text in texts] == [10, 1000, 1000, 7, 0]
    assert of(**parsed("name: 2026-01-02")).name == "2026-01-02"
    with pytest.raises(UserError, match="steps must be a whole number, at least 1, got '1:30'"):
        of(**parsed("steps: 1:30"))
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbfsteps: 3\r\nbatch: {epochs: 2}\r\n")
    assert cli.main(["train", "--config", str(file), "--print_config"]) == 0
    assert parsed(capsys.readouterr().out) == dump(of(steps=3, batch={"epochs": 2}))


def test_a_merge_key_lays_a_mapping_under_the_keys_beside_it():
    found = parsed("- &base {steps: 3, seed: 1}\n- {<<: *base, seed: 2}\n")
    assert found == [{"steps": 3, "seed": 1}, {"steps": 3, "seed": 2}]


def test_a_name_that_is_no_folder_is_refused_with_its_source():
    for resolved in (resolve, control.resolve):
        with pytest.raises(UserError, match=r"^some.yaml: name must be a folder name"):
            resolved(Layer("some.yaml", {"name": "a/b"}))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bench", "--dev", "cpu"], "rlkern bench: there is no flag --dev; did you mean --device"),
        (["bench", "--device", "x"], "rlkern bench: --device must be one of cpu, cuda, got 'x'"),
        (["compare", "--job", "2"], "rlkern compare: there is no flag --job; did you mean --jobs"),
        (["compare", "--jobs", "x"], "rlkern compare: argument --jobs: invalid int value: 'x'"),
        (["compare", "extra"], "rlkern compare: there is no flag extra"),
        (["trian"], "there is no command 'trian'; did you mean train: use train, eval, "),
        (
            [*TINY, "--checkpoint", "7"],
            "checkpoint chooses within a",
        ),
        ([*TINY, "--json", "--show", "3"], "and not with --json"),
        ([*TINY, "--show", "-3"], "show must be 0 or more"),
        ([*TINY, "--coefficients.kl_coef", "3"], "there is no flag"),
        (
            [*TINY, "--modes", "greedy", "--temperature", "0.5"],
            "temperature is of drawn answers, and modes greedy draws none: leave temperature out",
        ),
        (["sample", "tiny", "x", "--seed", "x"], "rlkern sample: flags: seed must be a whole"),
        (["show", "x", "--limit", "0", "--step", "3"], "step chooses completions, and limit 0"),
        (["show", "x", "--limit", "0", "--worst"], "worst chooses completions, and limit 0"),
        (["reward", "task", "--task", "addition", "--coefficients.kl_coef", "3"], "no flag"),
        (
            ["reward", "exact", "--data.train", "x.jsonl", "--seed", "3"],
            "seed is of the items of a",
        ),
    ],
)
def test_other_commands_drop_nothing_either(words, sentence, capsys):
    assert sentence in refused(*words, capsys=capsys)


def test_what_comes_after_two_dashes_is_taken_as_it_is(monkeypatch):
    from rlkern.cli.parser import given
    from rlkern.cli.sample import _parser

    found = given(_parser(), ["run", "--top-k", "3", "--", "--a-b=1 --a-b=1"])
    assert (found["prompt"], found["top_k"]) == ("--a-b=1 --a-b=1", "3")


def test_help_of_a_command_is_asked_for_in_either_order(capsys):
    assert cli.main(["help", "show"]) == 0
    first = capsys.readouterr().out
    assert cli.main(["show", "--help"]) == 0
    assert capsys.readouterr().out == first and "usage: rlkern show" in first


@pytest.mark.parametrize("flag", ["--config", "--name", "--output.dir"])
def test_a_pipeline_that_goes_on_drops_no_flag(flag, tmp_path, capsys):
    (tmp_path / "pipeline.yaml").write_text("stages: [{algorithm: sft, name: one}]\n")
    said = refused("train", "--resume", tmp_path, flag, "other", "--print_config", capsys=capsys)
    assert f"{tmp_path} goes on w" in said and flag in said and "'other'" in said
