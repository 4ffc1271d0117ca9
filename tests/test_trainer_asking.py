# SPDX-License-Identifier: Apache-2.0
"""A user's reward inside the run: slow, asynchronous, raising, random, or without an answer."""

import asyncio
import multiprocessing
import os
import random
import subprocess
import time

import pytest
import torch
from trainer_helpers import compiled, small, without_times  # noqa: F401

from rlkern.runs.errors import RewardError
from rlkern.runs.logs import read_metrics
from rlkern.trainer import UserError, train
from rlkern.trainer.processes.world import World
from rlkern.trainer.reward.asking import Limits
from rlkern.trainer.reward.functions import Rewards, limited, score_completions
from rlkern.trainer.reward.pairwise import win_rate_of
from rlkern.trainer.tasks.task import Item

# Seconds for an answer: far more than a call takes here, far less than a late one does.
PATIENT, LATE = 20.0, 600.0


def asked(function, completions, limits, prompts=None):
    """Returns (the rewards of completions, how many were late)."""
    rewards = Rewards([limited(function, limits)], [1.0])
    items = [Item(prompt, "") for prompt in prompts or ["p"] * len(completions)]
    reward, _ = score_completions(rewards, items, completions)
    return reward.tolist(), rewards.late


def sleeper(prompts, completions):
    if "slow" in completions:
        time.sleep(LATE)
    return [float(len(text)) for text in completions]


async def dozer(prompts, completions):
    if "slow" in completions:
        await asyncio.sleep(LATE)
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("function", (sleeper, dozer))
@pytest.mark.parametrize("workers", (1, 3))
def test_an_answer_beyond_the_time_limit_costs_that_answer_alone(function, workers):
    started = time.monotonic()
    reward, late = asked(function, ["a", "slow", "bbb", "cc"], Limits(2.0, workers))
    assert str(reward) == "[1.0, nan, 3.0, 2.0]" and late == 1
    assert time.monotonic() - started < LATE / 4


def test_what_a_late_reward_started_ends_with_it(tmp_path):
    def starts_a_child(prompts, completions):
        child = subprocess.Popen(["sleep", str(int(LATE))])
        (tmp_path / "pid").write_text(str(child.pid))
        return child.wait()

    assert asked(starts_a_child, ["a"], Limits(2.0))[1] == 1
    child = int((tmp_path / "pid").read_text())
    for _ in range(200):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        state = subprocess.run(["ps", "-o", "stat=", str(child)], capture_output=True, text=True)
        if state.stdout[:1] in ("Z", ""):  # dead, and nobody has asked for its exit code yet
            return
        time.sleep(0.05)
    raise AssertionError("the child still runs")


def test_as_many_answers_are_scored_at_once_as_there_are_workers():
    meeting = multiprocessing.get_context("fork").Barrier(2)
    waiting = []

    def meets(prompts, completions):
        meeting.wait(PATIENT)  # with one worker nobody else would come
        return [1.0]

    async def meets_too(prompts, completions):
        waiting.append(asyncio.Event())
        if len(waiting) % 2:
            await asyncio.wait_for(waiting[-1].wait(), PATIENT)
        else:
            waiting[-2].set()
        return [1.0]

    for function in (meets, meets_too):
        assert asked(function, ["a"] * 4, Limits(workers=2)) == ([1.0] * 4, 0)


def test_a_function_that_compares_answers_sees_all_answers_to_a_prompt_at_once():
    longer = win_rate_of(lambda prompt, a, b: float(len(a) > len(b)))
    texts, prompts = ["a", "aaa", "aa", "bb", "b"], ["p", "p", "p", "q", "q"]
    expected = [0.0, 1.0, 0.5, 1.0, 0.0]
    for limits in (Limits(), Limits(PATIENT), Limits(workers=2)):
        assert asked(longer, texts, limits, prompts)[0] == expected


def test_each_call_must_return_a_reward_for_each_of_its_answers():
    def of_two(prompts, completions):
        return [1.0] * (2 * (completions[0] == "a"))

    with pytest.raises(RewardError, match="was asked about 1 answers and returned 2"):
        asked(of_two, ["a", "b"], Limits(workers=2))


def test_coroutines_keep_their_event_loop_from_call_to_call():
    loops = []

    async def remembers(prompts, completions):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    function = limited(remembers, Limits())
    for _ in range(2):
        function(prompts=["p"], completions=["a"])
    assert loops[0] is loops[1] and not loops[0].is_closed()


def broken(prompts, completions):
    return [1.0 / text.count("a") for text in completions]


async def broken_too(prompts, completions):
    return [1.0 / text.count("a") for text in completions]


def ends_itself(prompts, completions):
    os._exit(3)


@pytest.mark.parametrize("limits", (Limits(), Limits(PATIENT)))
@pytest.mark.parametrize("function", (broken, broken_too))
def test_what_a_reward_raises_is_said_with_its_file_and_line(function, limits):
    line = function.__code__.co_firstlineno + 1
    sentence = (
        f"{function.__name__} raised ZeroDivisionError: .*test_trainer_asking.py, line {line}"
    )
    with pytest.raises(RewardError, match=sentence):
        asked(function, ["a", "b"], limits)


def test_a_reward_that_ends_its_process_is_said():
    with pytest.raises(RewardError, match=r"ends_itself ended its process \(exit code 3\)"):
        asked(ends_itself, ["a"], Limits(PATIENT))


def test_a_coroutine_that_blocks_its_event_loop_is_said(monkeypatch):
    async def blocks(prompts, completions):
        time.sleep(3)
        return [0.0]

    monkeypatch.setattr("rlkern.trainer.reward.asking._PATIENCE", 0.5)
    with pytest.raises(RewardError, match="blocks its event loop"):
        asked(blocks, ["a"], Limits(0.5))


def _told(rank):
    """Returns what one of two processes is told of three questions, and what the fourth raises."""
    world = World(rank, 2)
    told = [world.in_main(lambda: random.SystemRandom().random()) for _ in range(3)]

    def fails():
        raise RewardError(f"said by {rank}")

    with pytest.raises(RewardError) as error:
        world.in_main(fails)
    return told, str(error.value)


def test_the_main_process_alone_asks_and_all_use_what_it_was_told(monkeypatch):
    sent = []

    def from_main(world, value):
        sent.append(value) if world.is_main else None
        return value if world.is_main else sent.pop(0)

    monkeypatch.setattr(World, "from_main", from_main)
    first, second = _told(0), _told(1)
    assert first == second and len(set(first[0])) == 3 and first[1] == "said by 0"


THIRD = """
from trainer_rewards import even_digits
import pathlib
calls = []
def fails_once(prompts, completions, prompt_ids, completion_ids):
    assert len(prompt_ids) == len(completion_ids) == len(completions)
    calls.append(1)
    if len(calls) == 3 and not pathlib.Path({mark!r}).exists():
        raise RuntimeError("no judge")
    return even_digits(prompts, completions)
def silent(prompts, completions):
    return [None] * len(completions)
"""


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """Returns the path of a file with which the reward fails no more."""
    name = f"user_rewards_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(THIRD.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.usefixtures("compiled")
def test_a_run_whose_reward_raises_is_saved_first_and_goes_on_as_if_it_had_not(tmp_path, rewards):
    asked = {
        "sft": None,
        "steps": 4,
        "eval__every": 0,
        "output__save_every": 0,
        "groups": "dynamic",
    }
    config = small(tmp_path, name="run", reward__functions=f"{rewards}:fails_once", **asked)
    with pytest.raises(UserError) as error:
        train(config)
    said = str(error.value)
    assert "raised RuntimeError: no judge" in said and f"{rewards}.py, line 9" in said
    folder = tmp_path / "runs" / "run"
    assert said.endswith(f"is whole, go on with: rlkern train --resume {folder}")
    (tmp_path / "mark").touch()
    train(config, resume=True)
    train(small(tmp_path, name="whole", reward__functions=f"{rewards}:fails_once", **asked))
    found, whole = (read_metrics(tmp_path / "runs" / name) for name in ("run", "whole"))
    assert without_times(found) == without_times(whole)
    assert found[-1]["time/reward"] > 0


@pytest.mark.usefixtures("compiled")
def test_rollouts_without_any_reward_are_a_warning_then_a_stop(tmp_path, rewards, capsys):
    config = small(
        tmp_path, name="run", reward__functions=f"{rewards}:silent", sft=None, steps=9,
        eval__every=0, reward__degenerate_limit=3,
    )  # fmt: skip
    with pytest.raises(UserError, match="each of the last 3 rollouts no reward function could"):
        train(config)
    assert len(read_metrics(tmp_path / "runs" / "run")) == 3  # before the first, and two steps
    shown = capsys.readouterr()
    assert "step 1: no reward function could score any answer" in shown.out + shown.err


def test_values_that_are_tensors_come_back_from_a_worker():
    def tensors(prompts, completions):
        return [torch.tensor(0.5)]

    assert asked(tensors, ["a"], Limits(PATIENT))[0] == [0.5]
