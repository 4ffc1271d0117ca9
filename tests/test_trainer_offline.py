# SPDX-License-Identifier: Apache-2.0
"""What learns from given answers: tokens, losses, gradients, steps, resumes; no algorithm is chosen
by its name but where a kind of loss is meant."""

import dataclasses
import json

import pytest
import torch
from trainer_helpers import changed, loaded, settings, small, tiny_policy, without_times
from trainer_helpers import compiled as compiled

import rlkern
from rlkern.runs.logs import read_metrics
from rlkern.trainer import UserError, build, preflight, train
from rlkern.trainer.offline.losses import TOKEN_LOGPROB, answer_logprob, halves
from rlkern.trainer.offline.preferences import even_weight, mismatched, share_right
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.text import given_rows
from rlkern.trainer.update import Updater

pytestmark = pytest.mark.usefixtures("compiled")
KNOWN = rlkern.offline_algorithms()
EVERY = pytest.mark.parametrize("name", KNOWN)
JUDGING = pytest.mark.parametrize(
    "name", [name for name, known in KNOWN.items() if known.learns_from != "answers"]
)
PROMPTS = ["1+2=", "12+34=", "9=", "123+456="]
ANSWERS = ["3", "046", "9999", "", "57", "6", "579", "1"]


def write_pairs(folder, count=40):
    """Writes sums whose rejected answer is one too high."""
    lines = [
        {
            "prompt": f"{n:02d}+{n + 1:02d}=",
            "chosen": f"{2 * n + 1:03d}",
            "rejected": f"{2 * n:03d}",
        }
        for n in range(count)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def offline(tmp_path, name, /, **changes):
    """Returns a short run from random weights on given pairs, or on right answers."""
    judging = KNOWN[name].learns_from != "answers"
    own = {"pairs__source": write_pairs(tmp_path)} if judging else {}
    chosen = {"algorithm": name, "sft": None, "batch__prompts": 6, **own}
    return small(tmp_path, **{**chosen, **changes})


def ready(given, folder):
    """Returns a run before its first step, in float64."""
    parts = loaded(given)
    parts.policy.model.double()
    return build.begin(parts, folder, None, say=lambda _: None, after_step=lambda *_: None)


def pair_batch(policy):
    rows = given_rows(policy, PROMPTS, ANSWERS, stop="")
    ref = torch.linspace(-9, -3, len(ANSWERS), dtype=policy.model.dtype)
    weight = even_weight(len(PROMPTS), policy.device)
    return dataclasses.replace(rows, prompt_weight=weight, ref_total=ref)


def test_an_answer_ends_with_eos_unless_it_holds_the_text_that_ends_one():
    policy = tiny_policy()
    rollout = given_rows(policy, ["1+", "2="], ["3", "4=", "", "55"], stop="=")
    eos, pad = policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
    three, four, end, five = policy.tokenizer.encode("34=5")
    assert rollout.token.tolist() == [
        [three, eos, pad],
        [four, end, pad],
        [eos, pad, pad],
        [five, five, eos],
    ]
    assert rollout.mask.sum(-1).tolist() == [2, 2, 1, 3] and rollout.group_size == 2


@pytest.mark.parametrize(
    "prompt, answer, words",
    [
        ("one", "2", "the model has no token for some of the text 'one2'"),
        ("1", "2" * 600, "a prompt of 1 tokens and an answer of 601 do not fit"),
        ("", "2", "a prompt must have at least one token"),
    ],
)
def test_text_that_the_model_cannot_take_is_refused(prompt, answer, words):
    with pytest.raises(UserError, match=words):
        given_rows(tiny_policy(), [prompt], [answer], stop="")


@pytest.mark.parametrize("path", TOKEN_LOGPROB)
def test_the_log_probability_of_an_answer_is_the_models_own(path):
    policy = tiny_policy()
    found = answer_logprob(policy, pair_batch(policy), settings(loss__path=path))
    for row, text in enumerate(ANSWERS):
        prompt = policy.tokenizer.encode(PROMPTS[row // 2])
        answer = [*policy.tokenizer.encode(text), policy.tokenizer.eos_token_id]
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected = sum(logits[len(prompt) - 1 + t, token].item() for t, token in enumerate(answer))
        torch.testing.assert_close(found[row].item(), expected, rtol=1e-5, atol=1e-5)


@JUDGING
def test_the_split_into_micro_batches_does_not_change_the_gradient(tmp_path, name):
    parts, learner, _ = ready(offline(tmp_path, name, batch__prompts=7), tmp_path)
    # Away from the reference and from scores of 0, where everything would be equal.
    generator = torch.Generator().manual_seed(0)
    for parameter in parts.policy.parameters().values():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data += 0.02 * noise
    batch, _ = learner.batch()
    losses, gradients = [], []
    for count in (1, 3):
        split = changed(parts.settings, batch__micro_batches=count)
        parts.policy.model.zero_grad()
        sums = Updater(learner.losses(), split, World()).accumulate(batch)
        losses.append(sums.loss.item())
        assert len(sums.metrics) == count
        weights = parts.policy.parameters().values()
        gradients.append(torch.cat([p.grad.flatten() for p in weights]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-9)
    assert gradients[0].norm() > 1e-3


def test_the_loss_of_pairs_is_that_of_the_formula_on_the_models_log_probabilities(tmp_path):
    given = offline(tmp_path, "dpo", coefficients={"beta": 0.3})
    parts, learner, _ = ready(given, tmp_path)
    batch = pair_batch(parts.policy)
    found = learner.losses()(batch)
    assert found.critic is None and found.differences == {}
    logprob = answer_logprob(parts.policy, batch, parts.settings)
    chosen, rejected = halves(logprob - batch.ref_total)
    expected = -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)).mean()
    assert found.policy.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_mismatched_answers_belong_to_the_prompt_before():
    policy = tiny_policy()
    rollout = given_rows(policy, ["1+", "22+", "3+"], ["1", "22", "333"], stop="")
    others = mismatched(rollout)
    assert others.mask.sum(-1).tolist() == [3, 4, 2]
    assert torch.equal(others.prompt, rollout.prompt)
    assert torch.equal(others.token[0], rollout.token[1])


def test_every_answer_is_judged_once_in_an_epoch(tmp_path):
    learner = ready(offline(tmp_path, "kto", batch__prompts=16), tmp_path).learner
    seen = [learner.batch() for _ in range(4)]  # 32 pairs, 64 answers
    shown = sum(int(given.desirable.sum()) for given, _ in seen)
    tokens = {
        tuple(row)
        for given, _ in seen
        for row in torch.cat([given.prompt, given.token], 1).tolist()
    }
    assert shown == 32 and len(tokens) == 64
    assert all(given.divergence >= 0 and not given.divergence.requires_grad for given, _ in seen)


def test_a_kind_without_a_reference_loads_and_keeps_none(tmp_path):
    parts, learner, _ = ready(offline(tmp_path, "dpo", loss__kind="cpo"), tmp_path)
    assert parts.reference is None and not (tmp_path / "reference").exists()
    assert learner.batch()[0].ref_total is None
    parts, learner, _ = ready(offline(tmp_path, "dpo"), tmp_path)
    assert parts.reference is not None and (tmp_path / "reference").is_dir()
    assert learner.batch()[0].ref_total is not None


@pytest.mark.parametrize("kind", ["conservative", "ipo", "simpo", "aot", "bco_pair", "orpo"])
def test_any_kind_of_preference_loss_takes_a_step(tmp_path, kind):
    _, learner, updater = ready(offline(tmp_path, "dpo", loss__kind=kind), tmp_path)
    values, answers = learner.step(updater, pytest.fail)
    assert values["grad_norm"] > 0 and answers.samples[0][0].endswith("=")
    assert {"rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen"} <= {*values}
    assert {"time/score", "time/loss", "time/step"} <= {*values}


def test_equal_rewards_are_right_half_of_the_time(tmp_path):
    values = ready(offline(tmp_path, "dpo"), tmp_path).learner.evaluate()
    assert values["eval/accuracy"] == values["eval/pair_accuracy"] == 0.5
    assert share_right(torch.tensor([-1.0, 3.0, 0.0])) == 0.5


def test_accuracy_by_means_differs_where_lengths_do(tmp_path):
    path = tmp_path / "long.jsonl"
    pair = {"prompt": "1+1=", "chosen": "2" * 40, "rejected": "3"}
    path.write_text("".join(json.dumps({**pair, "prompt": f"{n}="}) + "\n" for n in range(10)))
    config = offline(tmp_path, "dpo", loss__kind="cpo", pairs__source=str(path))
    values = ready(config, tmp_path).learner.evaluate()
    # Without a reference an untrained model finds every token about as likely: the sum punishes
    # the longer answer, and the mean does not.
    assert values["eval/pair_accuracy"] == 0.0
    assert values["eval/pair_margin"] < -50
    averaged = ready(changed(config, loss__kind="simpo"), tmp_path / "b").learner.evaluate()
    assert averaged["eval/accuracy"] == averaged["eval/pair_accuracy_normalized"]
    assert averaged["eval/accuracy"] != averaged["eval/pair_accuracy"]


@EVERY
def test_a_batch_is_one_step_and_one_update(tmp_path, name):
    run = ready(offline(tmp_path, name, steps=3), tmp_path)
    for count in (1, 2):
        run.learner.step(run.updater, lambda _: None)
        assert (run.parts.progress.step, run.parts.progress.update) == (count, count)


@EVERY
def test_learning_lowers_the_loss_and_a_resume_repeats_the_curve(tmp_path, name):
    config = offline(
        tmp_path,
        name,
        steps=12,
        output__save_every=5,
        eval__every=6,
        output__keep_checkpoints=9,
    )
    whole = train(changed(config, name="whole"))
    curve = read_metrics(tmp_path / "runs" / "whole")
    # DFT's −p·log p rises to p = 1/e: it is the likelihood of the answers that learning raises.
    key, sign = ("logprob", -1) if name == "dft" else ("loss", 1)
    assert sum(sign * x[key] for x in curve[-3:]) < sum(sign * x[key] for x in curve[1:4])
    assert whole["skipped_updates"] == 0 and "eval/accuracy_after" in whole
    part = changed(config, name="part")
    train(changed(part, steps=6))
    train(part, resume=True)
    assert without_times(read_metrics(tmp_path / "runs" / "part")) == without_times(curve)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"algorithm": "dpo", "loss__kind": "nope"},
            "algorithm dpo: kind must be one of sigmoid, .* got 'nope'",
        ),
        ({"algorithm": "dpo", "coefficients": {"tau": 1.0}}, "no coefficient 'tau'"),
        ({"algorithm": "dpo", "coefficients": {"beta": -1.0}}, "beta must be greater than 0"),
        ({"algorithm": "ipo", "loss__kind": "hinge"}, "loss.kind is read by .* algorithm ipo does"),
        ({"algorithm": "kto", "loss__kind": "hinge"}, "loss.kind is read by .* algorithm kto does"),
        ({"algorithm": "kto", "batch__prompts": 1}, "batch.prompts must be at least 2"),
        ({"algorithm": "dpo", "batch__epochs": 3}, "batch.epochs is read by .* algorithm dpo does"),
        ({"algorithm": "sft", "batch__minibatches": 2}, "batch.minibatches is read by .* sft does"),
        (
            {"algorithm": "dpo", "loss__kind": "aot", "batch__micro_batches": 2},
            "batch.micro_batches must be 1",
        ),
        (
            {"algorithm": "reward_model", "lora__rank": 2},
            "lora.rank is read by runs that train a policy",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        preflight.check(small(tmp_path, **changes), World())


def test_text_that_the_model_cannot_read_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "words.jsonl"
    line = {"prompt": "Ice is", "chosen": " cold", "rejected": " hot"}
    path.write_text((json.dumps(line) + "\n") * 20)
    with pytest.raises(UserError, match="the model has no token for some of the text 'Ice is"):
        train(offline(tmp_path, "dpo", pairs__source=str(path)))
    assert not (tmp_path / "runs").exists()
