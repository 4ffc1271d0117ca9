# SPDX-License-Identifier: Apache-2.0
"""The smallest thing that a key changes, in the step that it should steer: optimizer, critic, …"""

import importlib

import pytest
import torch
from keys_helpers import HELD, calls, holds, norm, run_of, step, steps, weights_of
from trainer_helpers import begun, compiled, loaded, settings, small  # noqa: F401

import rlkern
from rlkern.runs.settings.layers import leaves
from rlkern.trainer import build
from rlkern.trainer.offline import supervised
from rlkern.trainer.run import checkpoint
from rlkern.trainer.settings import Settings
from rlkern.trainer.update import rates

pytestmark = pytest.mark.usefixtures("compiled")

TINY = {"batch__prompts": 2, "rollout__group_size": 2}
# Keys that steer no step, and keys whose effect on one is held by the tests of what they belong to.
NO_STEP = frozenset(
    "name max_seconds device dtype threads parallel batch.micro_batches reward.degenerate_limit"
    " memory.share_prompts memory.gradient_checkpointing".split()
)
ELSEWHERE = {
    "test_trainer_run, test_trainer_models": "seed model",
    "test_trainer_tasks": "task data.shots data.template data.options",
    "test_trainer_data": "data.train data.eval data.columns",
    "test_trainer_data_keys": "data.system data.chat data.stop data.max_prompt data.too_long",
    "test_trainer_turns": "rollout.max_turns",
    "test_trainer_rollout_vllm": "rollout.engine",
    "test_trainer_rollout_draws": "memory.length_bucket",
    "test_trainer_advantages": "advantage.ddof",
    "test_trainer_collect": "groups.kind groups.rounds groups.by",
    "test_trainer_rollout_mismatch": "correction.kind correction.high correction.low",
    "test_trainer_step": "sft.target",
    "test_trainer_silent": "batch.skip_silent",
    "test_trainer_pairs": "pairs.source pairs.items",
    "test_trainer_distillation": "teacher",
}


def test_every_key_that_steers_a_step_has_a_test_of_its_smallest_effect():
    for topic in ("loss", "reward", "terms"):  # they mark the keys that they hold
        importlib.import_module(f"test_trainer_keys_{topic}")
    known = {*HELD, *NO_STEP, *(key for keys in ELSEWHERE.values() for key in keys.split())}
    every = {key for key, _ in leaves(Settings) if not key.startswith(("eval.", "output."))}
    assert every == known


@holds("optimizer.max_grad_norm")
def test_max_grad_norm_scales_each_part_down_before_the_optimizer_sees_it(tmp_path):
    given = {"algorithm": "ppo", "batch__epochs": 1, "reward__kl_coef": 0.0}
    _, free = step(run_of(tmp_path / "free", **given))
    _, held = step(run_of(tmp_path / "held", **given, optimizer__max_grad_norm=1e-3))
    assert norm(free[0]) > 0.01 and norm(free[0], critic=True) > 0.01
    assert norm(held[0]) == pytest.approx(1e-3, rel=1e-3)
    assert norm(held[0], critic=True) == pytest.approx(1e-3, rel=1e-3)


@holds("optimizer.beta2")
def test_each_part_has_its_learning_rate_and_the_betas_of_the_settings(tmp_path):
    run = run_of(
        tmp_path, algorithm="ppo", optimizer__lr=1e-3, critic__lr=5e-3, optimizer__beta2=0.9,
        batch__epochs=1, reward__kl_coef=0.0,
    )  # fmt: skip
    (taken,) = steps(run, 1)
    assert taken.rates == {"policy": 1e-3, "critic": 5e-3}
    groups = run.updater.optimizer.param_groups
    assert {g["betas"] for g in groups} == {(0.9, 0.9)}


@holds("optimizer.weight_decay")
def test_weight_decay_touches_matrices_and_no_vectors(tmp_path):
    run = run_of(tmp_path, optimizer__weight_decay=0.25)
    decay = {
        id(p): group["weight_decay"]
        for group in run.updater.optimizer.param_groups
        for p in group["params"]
    }
    found = {(p.ndim >= 2, decay[id(p)]) for p in run.parts.parameters().values()}
    assert found == {(True, 0.25), (False, 0.0)}


# Of six steps two are the warm-up; the fall is over a quarter of the other four at a time.
BY_HAND = {
    None: [0.5, 1, 1, 1, 1, 1],
    "linear": [0.5, 1, 1, 0.8, 0.6, 0.4],
    "cosine": [0.5, 1, 1, 0.2 + 0.8 * 0.5 * (1 + 0.5**0.5), 0.6, 0.2 + 0.4 * (1 - 0.5**0.5)],
}


@holds("optimizer.lr", "optimizer.warmup", "optimizer.decay.kind", "optimizer.decay.floor", "steps")
@pytest.mark.parametrize("kind", BY_HAND)
def test_every_optimizer_step_has_the_rate_of_the_schedule_made_by_hand(tmp_path, kind):
    decay = None if kind is None else {"kind": kind, "floor": 0.2}
    run = run_of(
        tmp_path, **TINY, steps=3, batch__minibatches=2, optimizer__lr=1e-2, optimizer__warmup=2,
        optimizer__decay=decay,
    )  # fmt: skip
    before = weights_of(run)
    values, (first, second) = step(run)
    found = [first, second, *steps(run, 2)]
    expected = [1e-2 * share for share in BY_HAND[kind]]
    assert [taken.rates["policy"] for taken in found] == pytest.approx(expected, rel=1e-6)
    assert values["learning_rate"] == pytest.approx(expected[1])
    # AdamW's first step is as long as its rate wherever the gradient is not small.
    again = run_of(tmp_path / "again", **TINY, optimizer__lr=3e-3)
    (taken,) = steps(again, 1)
    for name, gradient in taken.gradients.items():
        moved = (again.parts.parameters()[name] - before[name]).abs()[gradient.abs() > 1e-4]
        torch.testing.assert_close(moved, torch.full_like(moved, 3e-3), rtol=1e-3, atol=1e-6)


def test_a_resumed_run_has_the_optimizer_of_its_settings(tmp_path):
    given = {
        **TINY, "algorithm": "ppo", "batch__epochs": 2, "optimizer__beta2": 0.9,
        "optimizer__weight_decay": 0.25, "optimizer__lr": 1e-3, "critic__lr": 2e-3, "steps": 4,
        "optimizer__warmup": 6,
    }  # fmt: skip
    first = run_of(tmp_path, **given)
    step(first)
    saved = checkpoint.save(tmp_path, first.parts, first.updater)
    second = begun(first.parts.settings, tmp_path, saved)
    groups = [
        [{key: x for key, x in group.items() if key not in ("params", "lr")} for group in each]
        for each in (r.updater.optimizer.param_groups for r in (first, second))
    ]
    assert groups[0] == groups[1] and {g["betas"] for g in groups[1]} == {(0.9, 0.9)}
    whole, resumed = (steps(run, 1) for run in (first, second))
    assert [x.rates for x in whole] == [x.rates for x in resumed]
    assert resumed[0].rates == pytest.approx({"policy": 5e-4, "critic": 1e-3})
    for name, p in first.parts.parameters().items():
        assert torch.equal(p, second.parts.parameters()[name]), name


@holds("optimizer.train_layers")
def test_the_optimizer_has_the_weights_of_the_last_layers_alone(tmp_path):
    run = run_of(tmp_path, **TINY, optimizer__train_layers=1)
    layers = run.parts.policy.model.get_decoder().layers
    (taken,) = steps(run, 1)
    own = {id(p) for group in run.updater.optimizer.param_groups for p in group["params"]}
    assert len(layers) > 1 and own == {id(p) for p in layers[-1].parameters()}
    assert len(taken.gradients) == len(own)


@holds("lora.rank", "lora.alpha", "lora.targets")
def test_adapters_have_the_rank_the_scale_and_the_places_of_the_settings(tmp_path):
    pytest.importorskip("peft")
    asked = {"lora__rank": 3, "lora__alpha": 7.5, "lora__targets": "q_proj,up_proj"}
    run = run_of(tmp_path, **TINY, **asked)
    (taken,) = steps(run, 1)
    assert {min(g.shape) for g in taken.gradients.values()} == {3}
    assert {name.split(".lora_")[0].split(".")[-1] for name in taken.gradients} == {
        "q_proj",
        "up_proj",
    }
    scales = [m.scaling for m in run.parts.policy.model.modules() if hasattr(m, "scaling")]
    scales = [found for found in scales if isinstance(found, dict)]
    assert scales and all(found == {"default": 2.5} for found in scales)


@holds("batch.prompts", "batch.epochs", "batch.minibatches", "rollout.group_size")
def test_every_epoch_takes_each_prompt_once_in_as_many_steps_as_there_are_minibatches(tmp_path):
    asked = {"batch__prompts": 5, "rollout__group_size": 3}
    run = run_of(tmp_path, **asked, batch__epochs=2, batch__minibatches=2)
    _, taken = step(run)
    assert [len(x.rows.token) for x in taken] == [6, 9, 6, 9]
    assert run.parts.progress.update == 4 and run.parts.progress.step == 1
    epochs = [[row for x in half for row in x.rows.item] for half in (taken[:2], taken[2:])]
    prompts = [sorted(item.prompt for item in epoch) for epoch in epochs]
    assert prompts[0] == prompts[1] and len(set(prompts[0])) == 5
    # A step of one rollout in one minibatch has the rows of all, in their order.
    _, (whole,) = step(run_of(tmp_path / "whole", **asked))
    assert sorted(item.prompt for item in whole.rows.item) == prompts[0]


def test_a_rollout_is_taken_in_as_many_pieces_as_there_are_micro_batches(tmp_path):
    found = {}
    for count in (1, 3):
        run = run_of(tmp_path / str(count), batch__prompts=4, batch__micro_batches=count)
        seen, forward = [], run.updater.losses.forward

        def look(rows, train_policy, seen=seen, forward=forward):
            seen.append(rows.prompts)
            return forward(rows, train_policy)

        run.updater.losses.forward = look
        (taken,) = steps(run, 1)
        found[count] = seen, taken.gradients
    assert found[1][0] == [4] and found[3][0] == [1, 1, 2]
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[3][1][name], gradient, rtol=1e-3, atol=1e-6)


@holds("critic.coef")
def test_critic_coef_weighs_the_gradient_of_the_critic_only(tmp_path):
    given = {"algorithm": "ppo", "critic__kind": "separate", "batch__epochs": 1}
    _, (one,) = step(run_of(tmp_path / "one", **given, critic__coef=0.1))
    _, (two,) = step(run_of(tmp_path / "two", **given, critic__coef=0.2))
    assert norm(two, critic=True) == pytest.approx(2 * norm(one, critic=True), rel=1e-4)
    assert norm(two) == pytest.approx(norm(one), rel=1e-6)


@holds("critic.kind", "critic.lr")
def test_a_critic_is_a_head_or_a_model_and_learns_at_its_own_rate_if_it_has_one(tmp_path):
    given = {**TINY, "algorithm": "a2c", "optimizer__lr": 1e-3}
    sizes = {}
    for kind, lr in (("head", None), ("separate", 4e-3)):
        run = run_of(tmp_path / kind, **given, critic__kind=kind, critic__lr=lr)
        (taken,) = steps(run, 1)
        assert taken.rates == {"policy": 1e-3, "critic": lr or 1e-3}
        sizes[kind] = sum(name.startswith("critic.") for name in taken.gradients)
    assert sizes["head"] == 2 < sizes["separate"]


@holds("critic.warmup")
def test_the_first_step_after_the_critics_warmup_has_the_first_rate_of_the_schedule(tmp_path):
    run = run_of(
        tmp_path, algorithm="a2c", critic__warmup=2, optimizer__warmup=4, optimizer__lr=1e-2
    )  # fmt: skip
    before = weights_of(run)
    waiting = steps(run, 2)
    assert [x.train_policy for x in waiting] == [False, False]
    assert all(name.startswith("critic.") for x in waiting for name in x.gradients)
    now = weights_of(run)
    for name, p in before.items():
        assert torch.equal(p, now[name]) is not name.startswith("critic."), name
    (first,) = steps(run, 1)
    assert first.train_policy and first.rates["policy"] == 1e-2 / 4
    assert first.rates["critic"] == pytest.approx(1e-2 * 3 / 4)
    assert any(not torch.equal(p, before[n]) for n, p in run.parts.policy.parameters().items())
    assert rates(run.parts.settings, 2)["policy"] == 0.25


def test_the_schedule_of_the_policy_falls_over_the_steps_that_its_critic_leaves_it():
    decay = {"kind": "linear", "floor": 0.4}
    given = settings(algorithm="a2c", steps=6, critic__warmup=2, optimizer__decay=decay)
    found = [rates(given, update) for update in range(6)]
    assert [r["policy"] for r in found[2:]] == pytest.approx([1, 0.85, 0.7, 0.55])
    assert [r["critic"] for r in found] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5])


@holds("critic.clip")
def test_the_critics_loss_is_clipped_around_what_it_said_before_the_first_update(
    tmp_path, monkeypatch
):
    seen = calls(monkeypatch, rlkern, "value_loss")
    run = run_of(
        tmp_path, **TINY, algorithm="ppo", batch__epochs=2, critic__clip=0.01, optimizer__lr=1e-2
    )
    values, _ = step(run)
    (first, second) = seen
    assert [named["clip"] for _, named, _ in seen] == [0.01, 0.01]
    value, old, target, mask = second[0]
    assert torch.equal(old[mask], first[0][1][mask])
    assert not old[mask].any()  # a critic begins with 0 everywhere
    held = value.clamp(-0.01, 0.01)
    error = torch.maximum((value - target).square(), (held - target).square())
    assert second[2].loss.item() == pytest.approx(0.5 * error[mask].mean().item(), rel=1e-5)
    assert (value.detach()[mask].abs() > 0.01).any() and values["critic/vf_clipfrac"] > 0
    losses = [found.loss.item() for *_, found in seen]
    assert values["critic/vf_loss"] == pytest.approx(sum(losses) / 2)
    assert values["critic/vf_explained_var"] < 1 and values["critic/vpred_mean"] != 0


@holds("sft.steps", "sft.lr", "sft.batch")
def test_the_supervised_start_has_its_own_steps_rate_and_batch(tmp_path, monkeypatch):
    seen, made = [], []
    original = supervised.Updater

    class Watched(original):
        def __init__(self, *rest, **named):
            super().__init__(*rest, **named)
            made.append(self)

        def step(self, rows, *rest, **named):
            result = super().step(rows, *rest, **named)
            seen.append((len(rows.token), {g["lr"] for g in self.optimizer.param_groups}))
            return result

    monkeypatch.setattr(supervised, "Updater", Watched)
    asked = {"sft": {"steps": 3, "lr": 4e-3, "batch": 5, "target": 0.0}}
    parts = loaded(small(tmp_path, **asked, optimizer__lr=1e-3, optimizer__max_grad_norm=0.5))
    run = build.begin(parts, tmp_path, None, say=lambda _: None, after_step=lambda *_: None)
    assert seen == [(5, {4e-3})] * 3 and len(made) == 1
    assert {g["lr"] for g in run.updater.optimizer.param_groups} == {1e-3}
    assert parts.progress.update == parts.progress.position == 0


def test_a_step_on_right_answers_takes_as_many_as_the_settings_ask_for(tmp_path):
    run = run_of(tmp_path, algorithm="sft", batch__prompts=3, optimizer__lr=2e-3)
    run.learner.step(run.updater, pytest.fail)  # nothing to warn of
    (first, second) = steps(run, 2)
    assert len(first.rows.token) == 3 and first.rates == {"policy": 2e-3}
    decode = run.parts.policy.tokenizer.decode
    told = [{decode(row) for row in taken.rows.prompt} for taken in (first, second)]
    assert not told[0] & told[1]
