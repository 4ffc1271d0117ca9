# SPDX-License-Identifier: Apache-2.0
"""Conversations: who said what, what of it counts, and a game that is learned."""

import dataclasses
import re

import pytest
import torch
from rollout_helpers import score
from trainer_helpers import compiled, loaded, settings, small, tiny_policy  # noqa: F401

from rlkern.runs.errors import UserError
from rlkern.runs.logs import read_metrics
from rlkern.trainer import preflight
from rlkern.trainer.loop import train
from rlkern.trainer.offline.supervised import right_answers
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.sampler import ModelEngine, Sampling, random_numbers, sample
from rlkern.trainer.rollout.text import Prompts, stop_tokens, text_of, texts
from rlkern.trainer.rollout.turns import converse, most_turns
from rlkern.trainer.tasks.guess import guess
from rlkern.trainer.tasks.registry import make_task

pytestmark = pytest.mark.usefixtures("compiled")
ALPHABET = "0123456789-:?<>"
TURNS = 3


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(ALPHABET)


def game(**changes):
    """Returns guess with an environment that answers whatever the model says, but not to all."""
    task = guess(seed=0, eval_items=20)
    said = {0: "<", 1: ">>", 2: None}
    reply = lambda item, text: said[(item.columns["hidden"] + len(text)) % 3]  # noqa: E731
    return dataclasses.replace(task, **{"reply": reply, **changes})


def talk(policy, task, *, group_size=2, seed=0, items=None, uniform=None, **rule):
    sampling = Sampling(3, stop_tokens(policy, "?"), max_turns=TURNS, **rule)
    items = items or task.held_out[:5]
    if uniform is None and sampling.temperature > 0:
        generator = torch.Generator().manual_seed(seed)
        uniform = random_numbers(generator, len(items) * group_size, sampling)
    return converse(
        ModelEngine(policy), task, items, sampling, group_size=group_size, uniform=uniform
    )


def scored(policy, rollout, share):
    return torch.where(rollout.mask, score(policy, rollout, share=share), 0.0)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("rule", [{}, {"top_k": 4}])
def test_the_scores_of_a_conversation_are_those_its_messages_were_sampled_with(policy, share, rule):
    rollout = talk(policy, game(), **rule)
    holes = rollout.present & ~rollout.mask
    assert holes.any() and (rollout.rollout_logprob[~rollout.mask] == 0).all()
    found = scored(policy, rollout, share)
    torch.testing.assert_close(found, rollout.rollout_logprob, rtol=1e-4, atol=1e-5)


def test_what_is_real_comes_first_and_the_environment_is_there_but_not_counted(policy):
    rollout = talk(policy, game())
    length = rollout.present.sum(1)
    first = torch.arange(rollout.token.shape[1]) < length[:, None]
    assert torch.equal(rollout.present, first) and len(set(length.tolist())) > 1
    assert not (rollout.mask & ~rollout.present).any()
    own = {i for i in range(len(policy.tokenizer)) if policy.tokenizer.decode([i]) in "<>"}
    uncounted = rollout.token[rollout.present & ~rollout.mask].tolist()
    assert set(uncounted) <= own


def test_each_message_of_the_environment_stands_behind_what_it_answers(policy):
    task = game()
    rollout = talk(policy, task)
    for row, text in enumerate(texts(policy, rollout)):
        item, so_far = task.held_out[row // 2], ""
        own = rollout.mask[row][rollout.present[row]].tolist()
        pieces = re.findall("T+F*", "".join("FT"[x] for x in own))
        assert len(pieces) <= TURNS
        ids = rollout.token[row][rollout.present[row]].tolist()
        for turn, piece in enumerate(pieces):
            count = piece.count("T")
            so_far += text_of(policy, [], ids[:count])
            said = policy.tokenizer.decode(ids[count : len(piece)])
            over = turn + 1 == len(pieces)
            asked = task.reply(item, so_far)
            assert said == ("" if over else asked)
            assert not over or asked is None or turn + 1 == TURNS
            so_far, ids = so_far + said, ids[len(piece) :]
        assert so_far == text


def test_conversations_are_the_same_in_one_piece_and_in_two(policy):
    task = game()
    sampling = Sampling(3, stop_tokens(policy, "?"), max_turns=TURNS)
    uniform = random_numbers(torch.Generator().manual_seed(0), 10, sampling)
    whole = texts(policy, talk(policy, task, uniform=uniform))
    parts = [
        talk(policy, task, items=task.held_out[a:b], uniform=uniform[2 * a : 2 * b])
        for a, b in ((0, 2), (2, 5))
    ]
    assert whole == [text for part in parts for text in texts(policy, part)]


def test_each_turn_is_drawn_by_numbers_of_its_own(policy):
    task = game(reply=lambda item, text: "<")
    uniform = random_numbers(
        torch.Generator().manual_seed(0), 10, Sampling(3, torch.tensor([1]), max_turns=TURNS)
    )
    last = torch.cat([uniform[:, :6], 1 - uniform[:, 6:]], 1)
    first, second = (texts(policy, talk(policy, task, uniform=u)) for u in (uniform, last))
    same = ["<".join(text.split("<")[:2]) for text in first]
    assert [text.startswith(start) for text, start in zip(second, same)] == [True] * 10
    assert first != second


def test_without_an_environment_a_conversation_is_a_completion(policy):
    task = game(reply=None)
    rollout = talk(policy, task)
    sampling = Sampling(3, stop_tokens(policy, "?"), max_turns=TURNS)
    uniform = random_numbers(torch.Generator().manual_seed(0), 10, sampling)
    prompts = Prompts(rollout.prompt, rollout.prompt_mask)
    plain = sample(policy, prompts, sampling, group_size=2, uniform=uniform)
    assert torch.equal(rollout.token, plain.token) and rollout.present is rollout.mask


def test_greedy_conversations_need_no_numbers(policy):
    first, again = (texts(policy, talk(policy, game(), temperature=0.0)) for _ in range(2))
    assert first == again


def test_a_conversation_that_outgrows_the_context_is_one_sentence(policy):
    task = game(reply=lambda item, text: "<" * 505)
    with pytest.raises(
        UserError, match="do not fit the model's context of 512; lower rollout.max_t"
    ):
        talk(policy, task)


def test_turns_where_nobody_answers_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="max_turns must be 1 for task addition"):
        preflight.check(small(tmp_path, rollout__max_turns=2), World())
    given = settings(task="guess", eval__items=4)
    assert most_turns(given, make_task(given)) == TURNS


def test_guess_shows_right_games_and_holds_whole_ranges_out():
    task = guess(seed=1, eval_items=60)
    items, _ = task.next_items(0, 400)
    held = {item.prompt for item in task.held_out}
    assert len(task.held_out) == 60 and not held & {item.prompt for item in items}
    for item in items + task.held_out:
        assert task.score(item.answer + task.stop, item) == 1.0
        assert item.answer.count("?") < task.max_turns
    assert len({item.answer for item in items}) > 100


def test_guess_rewards_finding_the_digit_alone():
    task = guess(seed=0, eval_items=4)
    item = dataclasses.replace(task.held_out[0], columns={"low": 0, "high": 9, "hidden": 6})
    rewards = {"6?": 1, "5?>6?": 1, "5?>7?<6?": 1, "5?>": 0, "7?": 0, "6": 0, "56?": 0, "": 0}
    assert {text: task.score(text, item) for text in rewards} == rewards


def test_guess_cannot_hold_out_everything():
    with pytest.raises(UserError, match="task guess: eval.items must be at most 110, got 111"):
        guess(seed=0, eval_items=111)


def test_a_resumed_game_has_the_curve_of_an_uninterrupted_one(tmp_path):
    game = {"task": "guess", "reward": "task", "sft__steps": 40, "eval__every": 0}
    game["rollout__top_k"] = 8
    train(small(tmp_path, name="whole", steps=4, **game))
    train(small(tmp_path, name="part", steps=2, **game))
    train(small(tmp_path, name="part", steps=4, **game), resume=True)
    whole, part = (read_metrics(tmp_path / "runs" / name) for name in ("whole", "part"))
    rewards = {line["step"]: line["reward"] for line in whole if "reward" in line}
    assert len(rewards) == 4 and len(set(rewards.values())) > 1
    assert {line["step"]: line["reward"] for line in part if "reward" in line} == rewards
    last = [line["loss"] for line in (whole[-1], part[-1])]
    assert last[0] == last[1]


def test_an_engine_that_is_missing_is_one_sentence_before_a_model_is_loaded(tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else found(name)
    )
    config = small(tmp_path, rollout__engine="vllm", model="tiny")
    with pytest.raises(UserError, match=r"install rlkern\[vllm\], or use --rollout.engine model"):
        preflight.check(config, World())


def test_the_supervised_stage_reads_the_environment_and_does_not_learn_it(policy):
    task = guess(seed=0, eval_items=60)
    rollout = right_answers(policy, task.held_out, task)
    for row, item in enumerate(task.held_out):
        real = rollout.present[row]
        text = policy.tokenizer.decode(rollout.token[row][real])
        assert text == item.answer + task.stop
        assert rollout.mask[row][real].tolist() == [character not in "<>" for character in text]


def test_pairs_of_conversations_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="dpo compares whole answers, and task guess is a conver"):
        loaded(small(tmp_path, algorithm="dpo", task="guess", reward="task"))
