# SPDX-License-Identifier: Apache-2.0
"""What learns from given answers: tokens, losses, gradients, steps, resumes; no algorithm is chosen
by its name but where a kind of loss is meant."""

import dataclasses
import json

import pytest
import torch
from trainer_helpers import compiled as compiled
from trainer_helpers import small, tiny_policy, without_times

import rlkern
from rlkern.trainer import Config, UserError, train
from rlkern.trainer.checked import check
from rlkern.trainer.learners import make_learner
from rlkern.trainer.offline.given import given_rollout
from rlkern.trainer.offline.losses import TOKEN_LOGPROB, Given, answer_logprob, halves
from rlkern.trainer.offline.preferences import even_weight, mismatched, share_right
from rlkern.trainer.processes.world import World
from rlkern.trainer.run.logs import read_metrics
from rlkern.trainer.session import build
from rlkern.trainer.step import accumulate

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


def offline(tmp_path, name, **changes):
    """Returns a short run from random weights on given pairs, or on right answers."""
    judging = KNOWN[name].learns_from != "answers"
    own = {"pairs__source": write_pairs(tmp_path)} if judging else {}
    chosen = {"algorithm": name, "reward__functions": None, "sft__steps": 0, "batch__prompts": 6, **own}
    return small(tmp_path, **{**chosen, **changes})


def learner_of(config, tmp_path, **changes):
    """Returns a learner before its first step, in float64."""

    class Silent:
        def say(self, sentence):
            pass

    session = build(dataclasses.replace(config, **changes), resume_from=None)
    session.policy.model.double()
    learner = make_learner(session)
    learner.prepare(tmp_path, Silent())
    return learner


def pair_batch(policy):
    rollout = given_rollout(policy, PROMPTS, ANSWERS, stop="")
    ref = torch.linspace(-9, -3, len(ANSWERS), dtype=policy.model.dtype)
    return Given(rollout, even_weight(len(PROMPTS), policy.device), ref_logprob=ref)


def test_an_answer_ends_with_eos_unless_it_holds_the_text_that_ends_one():
    policy = tiny_policy()
    rollout = given_rollout(policy, ["1+", "2="], ["3", "4=", "", "55"], stop="=")
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
        given_rollout(tiny_policy(), [prompt], [answer], stop="")


@pytest.mark.parametrize("path", TOKEN_LOGPROB)
def test_the_log_probability_of_an_answer_is_the_models_own(path):
    policy = tiny_policy()
    found = answer_logprob(policy, pair_batch(policy).rollout, settings(loss__path=path))
    for row, text in enumerate(ANSWERS):
        prompt = policy.tokenizer.encode(PROMPTS[row // 2])
        answer = [*policy.tokenizer.encode(text), policy.tokenizer.eos_token_id]
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected = sum(logits[len(prompt) - 1 + t, token].item() for t, token in enumerate(answer))
        torch.testing.assert_close(found[row].item(), expected, rtol=1e-5, atol=1e-5)


@JUDGING
def test_the_split_into_micro_batches_does_not_change_the_gradient(tmp_path, name):
    learner = learner_of(offline(tmp_path, name, prompts=7), tmp_path)
    # Away from the reference and from scores of 0, where everything would be equal.
    generator = torch.Generator().manual_seed(0)
    for parameter in learner.session.policy.parameters().values():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data += 0.02 * noise
    batch, _ = learner.batch()
    losses, gradients = [], []
    for count in (1, 3):
        config = dataclasses.replace(learner.session.config, batch__micro_batches=count)
        learner.session.policy.model.zero_grad()
        sums = accumulate(learner.losses, batch, config, learner.coefficients, world=World())
        losses.append(sums.loss.item())
        weights = learner.session.policy.parameters().values()
        gradients.append(torch.cat([p.grad.flatten() for p in weights]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-9)
    assert gradients[0].norm() > 1e-3


def test_the_loss_of_pairs_is_that_of_the_formula_on_the_models_log_probabilities(tmp_path):
    learner = learner_of(offline(tmp_path, "dpo"), tmp_path)
    batch = pair_batch(learner.session.policy)
    found, _, _ = learner.losses(batch, {"beta": 0.3})
    logprob = answer_logprob(learner.session.policy, batch.rollout, learner.session.config)
    chosen, rejected = halves(logprob - batch.ref_logprob)
    expected = -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)).mean()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_mismatched_answers_belong_to_the_prompt_before():
    policy = tiny_policy()
    rollout = given_rollout(policy, ["1+", "22+", "3+"], ["1", "22", "333"], stop="")
    others = mismatched(rollout)
    assert others.mask.sum(-1).tolist() == [3, 4, 2]
    assert torch.equal(others.prompts.token, rollout.prompts.token)
    assert torch.equal(others.token[0], rollout.token[1])


def test_every_answer_is_judged_once_in_an_epoch(tmp_path):
    learner = learner_of(offline(tmp_path, "kto", prompts=16), tmp_path)
    seen = [learner.batch() for _ in range(4)]  # 32 pairs, 64 answers
    shown = sum(int(given.desirable.sum()) for given, _ in seen)
    tokens = {
        tuple(row)
        for given, _ in seen
        for row in torch.cat([given.rollout.prompts.token, given.rollout.token], 1).tolist()
    }
    assert shown == 32 and len(tokens) == 64
    assert all(given.kl >= 0 and not given.kl.requires_grad for given, _ in seen)


def test_a_kind_without_a_reference_loads_and_keeps_none(tmp_path):
    learner = learner_of(offline(tmp_path, "dpo", kind="cpo"), tmp_path)
    assert learner.session.reference is None and not (tmp_path / "reference").exists()
    assert learner.batch()[0].ref_logprob is None
    learner = learner_of(offline(tmp_path, "dpo"), tmp_path)
    assert learner.session.reference is not None and (tmp_path / "reference").is_dir()


@pytest.mark.parametrize("kind", ["conservative", "ipo", "simpo", "aot", "bco_pair", "orpo"])
def test_any_kind_of_preference_loss_takes_a_step(tmp_path, kind):
    learner = learner_of(offline(tmp_path, "dpo", kind=kind), tmp_path)
    values, samples = learner.iterate(pytest.fail)
    assert values["grad_norm"] > 0 and samples[0][0].endswith("=")
    assert {"rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen"} <= {*values}


def test_equal_rewards_are_right_half_of_the_time(tmp_path):
    learner = learner_of(offline(tmp_path, "dpo"), tmp_path)
    values = learner.evaluate()
    assert values["eval/accuracy"] == values["eval/pair_accuracy"] == 0.5
    assert share_right(torch.tensor([-1.0, 3.0, 0.0])) == 0.5


def test_accuracy_by_means_differs_where_lengths_do(tmp_path):
    path = tmp_path / "long.jsonl"
    pair = {"prompt": "1+1=", "chosen": "2" * 40, "rejected": "3"}
    path.write_text("".join(json.dumps({**pair, "prompt": f"{n}="}) + "\n" for n in range(10)))
    config = offline(tmp_path, "dpo", kind="cpo", pairs=str(path))
    values = learner_of(config, tmp_path).evaluate()
    # Without a reference an untrained model finds every token about as likely: the sum punishes
    # the longer answer, and the mean does not.
    assert values["eval/pair_accuracy"] == 0.0
    assert values["eval/pair_margin"] < -50
    averaged = learner_of(dataclasses.replace(config, loss__kind="simpo"), tmp_path / "b").evaluate()
    assert averaged["eval/accuracy"] == averaged["eval/pair_accuracy_normalized"]
    assert averaged["eval/accuracy"] != averaged["eval/pair_accuracy"]


@EVERY
def test_learning_lowers_the_loss_and_a_resume_repeats_the_curve(tmp_path, name):
    config = offline(tmp_path, name, steps=12, save_every=5, eval_every=6, keep_checkpoints=9)
    whole = train(dataclasses.replace(config, name="whole"))
    curve = read_metrics(tmp_path / "runs" / "whole")
    assert sum(x["loss"] for x in curve[-3:]) < sum(x["loss"] for x in curve[1:4])
    assert whole["skipped_updates"] == 0 and "eval/accuracy_after" in whole
    part = dataclasses.replace(config, name="part")
    train(dataclasses.replace(part, steps=6))
    train(part, resume=True)
    assert without_times(read_metrics(tmp_path / "runs" / "part")) == without_times(curve)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"algorithm": "dpo", "loss__kind": "nope"}, "kind must be one of sigmoid, .* got 'nope'"),
        ({"algorithm": "dpo", "coefficients": {"tau": 1.0}}, "no coefficient 'tau'"),
        ({"algorithm": "dpo", "coefficients": {"beta": -1.0}}, "beta must be greater than 0"),
        ({"algorithm": "ipo", "loss__kind": "hinge"}, "algorithm ipo is kind 'ipo', got kind 'hinge'"),
        ({"algorithm": "kto", "loss__kind": "hinge"}, "kind 'hinge' is of preference losses"),
        ({"algorithm": "kto", "batch__prompts": 1}, "prompts must be at least 2"),
        ({"algorithm": "dpo", "batch__epochs": 3}, "epochs must be 1 for algorithm dpo"),
        ({"algorithm": "sft", "batch__minibatches": 2}, "minibatches must be 1 for algorithm sft"),
        ({"algorithm": "dpo", "loss__kind": "aot", "batch__micro_batches": 2}, "micro_batches must be 1"),
        ({"algorithm": "reward_model", "lora__rank": 2}, "lora_rank must be 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        check(small(tmp_path, reward__functions=None, **changes))


def test_text_that_the_model_cannot_read_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "words.jsonl"
    line = {"prompt": "Ice is", "chosen": " cold", "rejected": " hot"}
    path.write_text((json.dumps(line) + "\n") * 20)
    with pytest.raises(UserError, match="the model has no token for some of the text 'Ice is"):
        train(offline(tmp_path, "dpo", pairs=str(path)))
    assert not (tmp_path / "runs").exists()
