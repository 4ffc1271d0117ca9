# SPDX-License-Identifier: Apache-2.0
"""Settings that contradict: one sentence with the fix, before a model is loaded."""

import re

import pytest
import torch
from trainer_helpers import asked, changed, settings, small

import rlkern
from rlkern import cli
from rlkern.algorithms import declarations
from rlkern.trainer import UserError
from rlkern.trainer.settings import dump, of
from rlkern.trainer.settings.contradictions import ADAPTIVE_CLIP, WITHOUT_GROUP
from rlkern.trainer.settings.reads import OVER_TOKENS

CONTRADICTING = [
    ("--rollout.group_size 1", "rollout.group_size must be .* 2 for algorithm grpo, whose advant"),
    ("--rollout.group_size 1 --algorithm dapo", "group_size must be at least 2 for algorithm dapo"),
    (
        "--rollout.group_size 1 --algorithm ppo --groups dynamic",
        "groups.kind dynamic keeps groups whose .*, or use groups.kind all",
    ),
    ("--rollout.group_size 1 --algorithm dpo", "group_size must be at least 2 for sampled pairs"),
    (
        "--advantage.gae_lambda 0.9",
        "flags: advantage.gae_lambda is read by runs that have a value function, which algorithm"
        " grpo does not; choose one that does",
    ),
    ("--advantage.discount 0.9", "advantage.discount is read by runs that spread rewards over tok"),
    ("--critic.kind separate", "critic.kind is read by runs that have a value function"),
    ("--critic.lr 0.1 --algorithm rloo", "critic.lr is read by .* algorithm rloo does not"),
    ("--critic.clip 0.3", "critic.clip is read by"),
    ("--critic.warmup 3 --algorithm dpo", "critic.warmup is read by"),
    ("--advantage.whiten true", "advantage.whiten is read by"),
    (
        "--advantage.reference_samples 3",
        "advantage.reference_samples is read by .* need answers of",
    ),
    ("--pairs facts", "pairs.source is read by runs that learn from preferences"),
    ("--loss.kind hinge --algorithm sft", "loss.kind is read by runs that leave the kind of pref"),
    ("--groups dynamic --algorithm dpo", "groups.kind is read by runs that learn from answers of"),
    ("--rollout vllm --algorithm sft", "rollout.engine is read by runs that learn from answers of"),
    ("--reward.weights 1,2", "reward.weights must hold a number for each of 1 rewards"),
    ("--reward.weights 0", "reward.weights must hold .* not all 0"),
    ("--memory.gradient_checkpointing true", "add --memory.share_prompts false"),
    ("--algorithm ppo --critic.warmup 100", "critic.warmup must be below steps"),
    ("--lora.rank 4 --optimizer.train_layers 1", "give one of the two"),
    (
        "--reward.adaptive 3 --algorithm rloo --reward.kl_coef 0",
        "reward.adaptive.target 3 steers reward.kl_coef",
    ),
    (
        "--reward.adaptive.horizon 100 --algorithm rloo",
        "flags: reward.adaptive.target must be given with the other keys of reward.adaptive",
    ),
    ("--reward.kl_coef 0.1", "reward.kl_coef is read by .* a KL in the reward .*weighs one in the"),
    ("--advantage.ddof 0 --algorithm ppo --advantage.whiten false", "add --advantage.whiten true"),
    ("--advantage.ddof 0 --algorithm rloo", "divide advantages by a deviation"),
    ("--batch.minibatches 17", "batch.minibatches must be at most batch.prompts"),
    ("--eval.pass_at 4", "eval.pass_at must be from 1 to eval.samples"),
    ("--eval.samples 4 --eval.modes greedy", "eval.samples must be 1 if eval.modes is greedy"),
    (
        "--algorithm gdpo",
        "reward.functions must name at least 2 that count, with a comma between, got 'task'",
    ),
    (
        "--algorithm gdpo --reward.functions task,task --reward.weights 1,0",
        "must name at least 2 that count",
    ),
    ("--coefficients.clip_low -0.5", "algorithm grpo: clip_low must not be negative, got -0.5"),
    ("--coefficients.kl_coef .nan", "coefficients.kl_coef must be a number or .*, got nan"),
    ("--coefficients.kl_coef nan", "coefficients.kl_coef must be a number or .*, got 'nan'"),
    ("--coefficients.kl_coef -1", "algorithm grpo: kl_coef must not be negative"),
    ("--algorithm sapo --coefficients.tau_positive -1", "tau_positive must not be negative"),
    (
        "--correction sequence_truncate --correction.low 3",
        "correction.low is read only with correction.kind truncate or mask or sequence_mask",
    ),
    ("--correction total_variation_mask", "correction.high must be given with the other keys"),
    ("--coefficients.clip_low inf", "algorithm grpo: clip_low must be finite, got inf"),
    ("--coefficients.log_ratio_max nan", "coefficients.log_ratio_max must be a number or .*"),
    ("--coefficients.log_ratio_min inf", "algorithm grpo: log_ratio_min must not be positive"),
    (
        "--loss.entropy_over tokens",
        "loss.entropy_over tokens weighs the entropy term, whose coefficients.entropy_coef must be",
    ),
    ("--loss.nll_coef -1", "loss.nll_coef must be a finite number, 0 or more, got '-1'"),
    ("--algorithm sft --loss.nll_coef 1", "loss.nll_coef is read by runs that learn from answers"),
    ("--correction mask --correction.low 3", "correction.low must be at most correction.high 2"),
    ("--groups.rounds 3", "groups.rounds is read only with groups.kind dynamic"),
    ("--groups.by weight", "groups.by is read only with groups.kind duplicate"),
    ("--optimizer.weight_decay .inf", "optimizer.weight_decay must be a finite number, 0 or more"),
    (
        "--algorithm ppo --reward.adaptive.target .inf",
        "reward.adaptive.target must be a finite num",
    ),
    ("--reward.weights nan", "reward.weights must be finite numbers"),
    (
        "--optimizer.decay linear --optimizer.decay.floor 7",
        "optimizer.decay.floor must be a number between 0 and 1, got '7'",
    ),
    ("--seed 18446744073709551616", "seed must be a whole number from 0 to 2..63 - 1"),
    ("--rollout.temperature 1e-40", "rollout.temperature must be a finite number, at least 1e-4"),
    ("--coefficients.clip_low 0.3 --algorithm dpo", "has no coefficient 'clip_low'"),
    ("--data.shots 2", "data.shots is read by runs that ask a reasoning-gym family"),
    ("--algorithm reward_model --lora 4", "lora.rank is read by runs that train a policy"),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), CONTRADICTING, ids=[a for a, _ in CONTRADICTING]
)
def test_a_contradiction_is_one_sentence_before_a_model_is_loaded_or_anything_written(
    capsys, tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.nn.Module, "__init__", no_model)
    code = cli.main(["train", "--output.dir", str(tmp_path / "runs"), *arguments.split()])
    _, err = capsys.readouterr()
    assert code == 2
    assert err.startswith("rlkern train: ") and err.count("\n") == 1
    assert re.search(sentence, err), err
    assert not list(tmp_path.iterdir())


def no_model(self, *_, **__):
    raise AssertionError("a model is being made")


@pytest.mark.parametrize("name", declarations())
def test_every_algorithm_is_free_of_contradictions_as_it_stands(name):
    config = settings(algorithm=name, **asked(name))
    # What a run has written down is what it is resumed with.
    assert of(**dump(config)) == config


def test_names_of_advantages_are_those_that_algorithms_declare():
    declared = {algorithm.advantage for algorithm in rlkern.algorithms().values()}
    assert declared >= WITHOUT_GROUP and declared >= OVER_TOKENS


def test_the_clip_of_the_adaptive_controller_is_the_controllers_own():
    assert ADAPTIVE_CLIP == rlkern.AdaptiveKl.clip


def test_one_answer_to_a_prompt_is_enough_if_answers_are_not_compared_with_each_other(tmp_path):
    alone = [a for a in rlkern.algorithms().values() if a.advantage in WITHOUT_GROUP]
    assert len(alone) >= 5
    for algorithm in alone:
        own = small(tmp_path, algorithm=algorithm.name, rollout__group_size=1)
        assert own.rollout.group_size == 1


def test_a_key_that_nothing_reads_is_refused_even_with_its_default():
    for key, value in (("advantage__discount", 1.0), ("critic__kind", "head")):
        with pytest.raises(UserError, match=key.replace("__", ".")):
            settings(algorithm="grpo", **{key: value})
        assert settings(algorithm="ppo", **{key: value}) == settings(algorithm="ppo")


def test_a_key_of_a_group_that_is_off_turns_it_on():
    assert changed(settings(), lora__alpha=4.0).lora.rank == 8
    assert changed(settings(), lora__targets="q_proj").lora.targets == ("q_proj",)
    assert changed(settings(), correction__high=3.0).correction.kind == "truncate"
    assert changed(settings(), correction__low=0.5).correction.kind == "mask"
    assert changed(settings(), optimizer__decay__floor=0.3).optimizer.decay.kind == "linear"
