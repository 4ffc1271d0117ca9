# SPDX-License-Identifier: Apache-2.0
"""Settings that contradict: one sentence with the fix, before a model is loaded."""

import re

import pytest
import torch
from trainer_helpers import small

import rlkern
from rlkern import cli
from rlkern.trainer import UserError, preflight
from rlkern.trainer.preflight import ALONE, check_settings
from rlkern.trainer.settings import find_algorithm, known_algorithms, resolve

CONTRADICTING = [
    ("--rollout.group_size 1", "group_size must be at least 2 for algorithm grpo, whose advantages"),
    ("--rollout.group_size 1 --algorithm dapo", "group_size must be at least 2 for algorithm dapo"),
    ("--rollout.group_size 1 --algorithm ppo --groups.kind dynamic", "sampling dynamic keeps groups whose"),
    ("--rollout.group_size 1 --algorithm dpo", "group_size must be at least 2 for pairs sampled"),
    ("--advantage.gae_lambda 0.9", "gae_lambda is read by algorithms that need a value function alone"),
    ("--advantage.discount 0.9", "discount is read by algorithms that spread rewards over tokens alone"),
    ("--critic.kind separate", "critic is read by algorithms that need a value function alone"),
    ("--critic.lr 0.1 --algorithm rloo", "critic_lr is read by .* not by rloo"),
    ("--critic.clip 0.3", "value_clip is read by"),
    ("--critic.warmup 3 --algorithm dpo", "critic_warmup is read by"),
    ("--advantage.whiten true", "whiten_advantage is read by"),
    ("--advantage.reference_samples 3", "reference_samples is read by algorithms that need answers of"),
    ("--pairs.source facts", "pairs is read by algorithms that learn from preferences alone"),
    ("--loss.kind hinge --algorithm sft", "kind is read by algorithms that learn from preferences"),
    ("--groups.kind dynamic --algorithm dpo", "sampling is read by algorithms that learn from answ"),
    ("--rollout.engine vllm --algorithm sft", "rollout is read by algorithms that learn from answers"),
    ("--reward.weights [1,2]", "reward_weights must hold a number for each of 1 rewards"),
    ("--reward.weights [0]", "reward_weights must hold .* not all 0"),
    ("--memory.gradient_checkpointing true", "add --memory.share_prompts false"),
    ("--algorithm ppo --critic.warmup 100", "critic_warmup must be below steps"),
    ("--lora.rank 4 --optimizer.train_layers 1", "give one of the two"),
    ("--lora.alpha 4", "lora_alpha 4.* has no effect with lora_rank 0: give lora_rank above 0"),
    ("--lora.targets q_proj", "lora_targets 'q_proj' has no effect with lora_rank 0"),
    ("--reward.adaptive.target 3 --algorithm rloo --reward.kl_coef 0", "kl_target 3.* steers reward_kl_coef"),
    ("--reward.adaptive.horizon 100 --algorithm rloo", "kl_horizon 100.* has no effect with kl_target 0"),
    ("--reward.kl_coef 0.1", "reward_kl_coef must be 0 for algorithm grpo"),
    ("--correction.high 3", "has no effect with rollout_correction 'none'"),
    ("--optimizer.decay.floor 0.3", "lr_floor 0.3 has no effect with lr_decay 'none'"),
    ("--batch.minibatches 17", "minibatches must be at most prompts"),
    ("--eval.pass_at [4]", "eval_pass_at must be from 1 to eval_samples"),
    ("--eval.samples 4 --eval.modes [greedy]", "eval_samples must be 1 where eval_modes is .'gree"),
    (
        "--algorithm gdpo",
        "reward must name at least 2 that count, with a comma between, got 'task'",
    ),
    (
        "--algorithm gdpo --reward.functions task,task --reward.weights [1,0]",
        "must name at least 2 that count",
    ),
    ("--coefficients.clip_low -0.5", "algorithm grpo: clip_low must not be negative, got -0.5"),
    ("--coefficients.kl_coef .nan", "algorithm grpo: kl_coef must be finite"),
    ("--coefficients.kl_coef -1", "algorithm grpo: kl_coef must not be negative"),
    ("--algorithm sapo --coefficients.tau_positive -1", "tau_positive must not be negative"),
    ("--correction.kind truncate --correction.low 3", "correction_low must be at most correct"),
    (
        "--groups.rounds 3",
        "sampling_rounds 3 has no effect with sampling 'all': use sampling dyn",
    ),
    ("--groups.by weight", "duplicate_by 'weight' has no effect with sampling 'all'"),
    ("--optimizer.weight_decay .inf", "weight_decay must be a finite number, 0 or more, got inf"),
    ("--algorithm ppo --reward.adaptive.target .inf", "kl_target must be a finite number, 0 or more, got inf"),
    ("--reward.weights [.nan]", "reward_weights must be finite numbers"),
    ("--optimizer.decay linear --optimizer.decay.floor 7", "lr_floor must be between 0 and 1, got 7.0"),
    ("--seed 18446744073709551616", "seed must be 0 or more and below"),
    ("--rollout.temperature 1e-40", "temperature must be at least 1e-4"),
    ("--coefficients.clip_low 0.3 --algorithm dpo", "has no coefficient 'clip_low'"),
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


@pytest.mark.parametrize("name", known_algorithms())
def test_every_algorithm_is_free_of_contradictions_as_it_stands(tmp_path, name):
    several = "several_rewards" in find_algorithm(name).needs
    config = small(tmp_path, algorithm=name, reward__functions="task,other:reward" if several else None)
    check_settings(config, find_algorithm(name))
    # What a run has written down is what it is resumed with.
    check_settings(resolve(config), find_algorithm(name))


def test_advantages_that_stand_alone_are_names_of_advantages():
    declared = {algorithm.advantage for algorithm in rlkern.algorithms().values()}
    assert declared >= ALONE and declared >= preflight.OVER_TOKENS


def test_one_answer_to_a_prompt_is_enough_where_nothing_is_compared(tmp_path):
    alone = [a for a in rlkern.algorithms().values() if a.advantage in ALONE]
    assert len(alone) >= 5
    for algorithm in alone:
        check_settings(small(tmp_path, algorithm=algorithm.name, rollout__group_size=1), algorithm)


def test_a_key_set_to_what_it_is_anyway_is_no_contradiction(tmp_path):
    check_settings(small(tmp_path, advantage__discount=1.0, critic__kind="head"), find_algorithm("grpo"))
    with pytest.raises(UserError, match="discount"):
        check_settings(small(tmp_path, advantage__discount=0.5), find_algorithm("grpo"))
