# SPDX-License-Identifier: Apache-2.0
"""Environments of one's own: tools, turns, what counts, and what is said of bad ones."""

import importlib
import json
import re

import pytest
import torch
from trainer_helpers import ROOT, compiled, tiny_policy  # noqa: F401

from rlkern.cli import main
from rlkern.runs.errors import RewardError
from rlkern.runs.logs import read_metrics
from rlkern.trainer.data.render import chat_tokens, reply_ids
from rlkern.trainer.models.load import character_tokenizer, make_policy
from rlkern.trainer.reward.functions import load_rewards, score_completions
from rlkern.trainer.rollout.fitting import fitted
from rlkern.trainer.rollout.sampler import Sampling
from rlkern.trainer.rollout.talks import conversation_statistics
from rlkern.trainer.rollout.text import end_tokens, stop_tokens
from rlkern.trainer.rollout.turns import converse
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import of
from rlkern.trainer.tasks.registry import make_task

pytestmark = pytest.mark.usefixtures("compiled")
ENVIRONMENT = '''
from rlkern.trainer.tasks.environment import Environment

def add(a: int, b: int) -> str:
    """Returns the sum.

    Args:
        a: one number.
        b: another.
    """
    return str(a + b)

def undescribed(a):
    return a

def reply(row, messages):
    return None if messages[-1]["content"] == row["answer"] else "No, again: <x>"

def score(row, messages):
    return float(messages[-1]["content"] == row["answer"])

def items(count=10):
    return [{"prompt": f"{n}+1?", "answer": str(n + 1)} for n in range(count)]

def make(count=10, **more):
    given = {"items": items(count), "score": score, "tools": [add], "reply": reply, "max_turns": 3}
    return Environment(**{**given, **more})

def no_score():
    return Environment(items=items(), tools=[add])

def without_words():
    return Environment(items=items(), score=score, tools=[undescribed])

def of_nothing():
    return Environment(items=[], score=score)

def of_texts():
    return Environment(items=["1+1?"], score=score)

def rows_of_a_file():
    return Environment(score=score)

class Named:
    items = [{"prompt": "a", "answer": "b"}]

def named():
    return Named()

def raises():
    return {}["nothing"]

class Counter:
    """As GRPOTrainer(environment_factory=Counter) takes it."""

    made = 0

    def __init__(self):
        Counter.made += 1

    def reset(self, answer, **row):
        self.total, self.answer = 0, answer
        return " From 0."

    def step(self, by: int) -> str:
        """Adds a number.

        Args:
            by: what is added.
        """
        self.total += by
        return f"now {self.total}"

    def _hidden(self):
        raise AssertionError

    def get_reward(self):
        return float(str(self.total) == self.answer)

class Unsteady(Counter):
    def reset(self, **row):
        self.total = Unsteady.made = Unsteady.made + 1
        return str(self.total)

class Silent:
    def reset(self, **row):
        return None
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with environments and rows, where one stands."""
    (tmp_path / "my_env.py").write_text(ENVIRONMENT)
    rows = [{"prompt": f"{n}+1?", "answer": str(n + 1)} for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Scripted:
    """An engine that says given messages, one of them cut off where it ends with …"""

    def __init__(self, policy, *messages):
        self.policy, self._messages = policy, list(messages)

    def refresh(self):
        pass

    def sample(self, prompts, sampling, *, group_size, uniform):
        rows = prompts.token.shape[0] * group_size
        said, self._messages = self._messages[:rows], self._messages[rows:]
        eos = [self.policy.tokenizer.eos_token_id]
        encode = self.policy.tokenizer.encode
        ids = [encode(text.removesuffix("…")) + eos * (not text.endswith("…")) for text in said]
        width = max(map(len, ids))
        token = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        real = torch.tensor([[n < len(row) for n in range(width)] for row in ids])
        return Rows(
            prompt=prompts.token,
            prompt_mask=prompts.mask,
            token=token,
            mask=real,
            present=real,
            rollout_logprob=-real.float(),
        )


def talk(name, *messages, turns=3, group_size=1, **keys):
    """Returns (the rows of scripted conversations about the first item, its task, its policy)."""
    settings = of(**{"task": name, "sft": None, "eval.items": 1, **keys})
    task = make_task(settings)
    alphabet = "".join(map(chr, range(32, 127)))
    policy = make_policy(
        "tiny", alphabet=alphabet, seed=0, device=torch.device("cpu"), dtype="float32", chat=True
    )
    task = fitted(task, policy, settings, new=8)
    sampling = Sampling(8, stop_tokens(policy, ""), max_turns=turns)
    items = sorted(task.rows, key=lambda item: item.prompt)[:1]
    engine = Scripted(policy, *messages)
    rows = converse(engine, task, items, sampling, group_size=group_size, uniform=None)
    return rows, task, policy, items


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_only_what_the_model_said_counts_and_all_is_as_the_template_renders_it(folder):
    said = ["7", call("add", a=1, b=1), "2"]
    rows, task, policy, (item, *_) = talk("my_env.py:make", *said)
    right = item.answer
    heard = ["No, again: <x>", "2"]
    roles = ["assistant", "user", "assistant", "tool", "assistant"]
    texts = [said[0], heard[0], said[1], heard[1], said[2]]
    assert [(m["role"], m["content"]) for m in rows.transcript[0]] == list(zip(roles, texts))
    assert rows.verdict == [float(right == "2")]
    whole = chat_tokens(policy.tokenizer, item.asked, tuple(rows.transcript[0]), end_tokens(policy))
    assert rows.prompt[0][rows.prompt_mask[0]].tolist() == whole.prompt
    present = rows.present[0]
    assert rows.token[0][present].tolist() == whole.answer
    assert rows.mask[0][present].tolist() == whole.counts
    assert (rows.rollout_logprob[~rows.mask] == 0).all()
    own = policy.tokenizer.decode(rows.token[0][rows.mask[0]])
    assert own == "".join(f"{text}<eos>" for text in said)


def test_conversations_of_a_group_end_each_by_itself(folder):
    said = ["9", call("add", a=2, b=3), "8…", "7", "6"]
    rows, *_ = talk("my_env.py:make", *said, group_size=2)
    first, second = ([m["content"] for m in each] for each in rows.transcript)
    assert first == ["9", "No, again: <x>", "8"]
    assert second == [said[1], "5", "7", "No, again: <x>", "6"]
    length = rows.present.sum(1)
    assert torch.equal(rows.present, torch.arange(rows.token.shape[1]) < length[:, None])
    assert rows.mask.sum(1).tolist() == [len("9") + 1 + len("8"), len(said[1]) + 1 + 2 + 2]


def test_a_message_that_was_cut_off_is_not_answered_and_the_last_one_neither(folder):
    rows, *_ = talk("my_env.py:make", "7…")
    assert [m["role"] for m in rows.transcript[0]] == ["assistant"]
    rows, *_ = talk("my_env.py:make", "7", "8", turns=2)
    assert [m["role"] for m in rows.transcript[0]] == ["assistant", "user", "assistant"]


def test_a_conversation_ends_before_the_context_is_too_short(folder):
    (folder / "long.py").write_text(
        "from my_env import *\n"
        "def make():\n"
        "    return Environment(items=items(), score=score, reply=lambda row, said: 'x' * 600)\n"
    )
    rows, *_ = talk("long.py:make", "7")
    assert [m["role"] for m in rows.transcript[0]] == ["assistant"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (call("add", a=1, b="x"), "error: TypeError: "),
        (call("sub", a=1), "error: there is no tool sub; there is add"),
        ("<tool_call>add(1)</tool_call>", 'error: a call must be JSON such as {"name"'),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}', "error: TypeError: "),
    ],
)
def test_what_goes_wrong_in_a_call_is_told_to_the_model_and_counted(folder, said, words):
    rows, *_ = talk("my_env.py:make", said, "3", turns=2)
    message = rows.transcript[0][1]
    assert message["role"] == "tool" and message["failed"] and message["content"].startswith(words)
    found = conversation_statistics(rows)
    assert found["conversations/failed_calls"] == found["conversations/tool_calls"] == 1.0
    assert found["conversations/messages"] == 2.0


def test_several_calls_of_a_message_are_answered_in_their_order(folder):
    both = call("add", a=1, b=1) + call("add", a=2, b=2)
    rows, *_ = talk("my_env.py:make", both, "3", turns=2)
    assert [m["content"] for m in rows.transcript[0][1:3]] == ["2", "4"]


def test_the_model_is_shown_the_tools_and_the_reward_what_was_said(folder):
    rows, task, _, items = talk("my_env.py:make", call("add", a=1, b=1), "2", turns=2)
    (shown,) = items[0].asked.tools
    assert shown["function"]["name"] == "add"
    assert set(shown["function"]["parameters"]["properties"]) == {"a", "b"}
    settings = of(task="my_env.py:make", sft=None, reward="task")
    columns = {"verdict": rows.verdict}
    found, _ = score_completions(
        load_rewards(settings, task), items, ["2"], columns, rows.transcript
    )
    assert found.tolist() == rows.verdict


def test_a_template_may_write_something_behind_the_end_of_a_message():
    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyz-?!\n :")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    ends = [tokenizer.eos_token_id]
    ids = reply_ids(tokenizer, [{"role": "tool", "content": "four"}], ends)
    assert tokenizer.decode(ids) == "\ntool: four<eos>\nassistant: "


WRONG = {
    "nothing.py:make": "there is no file nothing.py",
    "my_env.py:mkae": "has no 'mkae'; it has ",
    "my_env.py:no_score": r"environment my_env.py:no_score has no score .* name another --reward",
    "my_env.py:without_words": "tool undescribed needs type hints and a docstring with Args",
    "my_env.py:of_nothing": "must have items, it has none",
    "my_env.py:of_texts": "item 1 must be a mapping with a prompt, got str",
    "my_env.py:rows_of_a_file": "has no items: add --data.train FILE",
    "my_env.py:named": "taskset of verifiers, got Named; it has no score",
    "my_env.py:raises": r"raised KeyError: 'nothing' \(my_env.py, line \d+\)",
    "my_env.py:Counter": "has no items: add --data.train FILE",
    "my_env.py:Silent --data.train rows.jsonl": "has no score .TRL's get_reward",
    "my_env.py:make --data.train rows.jsonl": "has items of its own: leave data.train out",
    "my_env.py:make --data.options.cuont 3": "has no|unexpected|TypeError",
    "my_env.py:no_score --data.options.count 3": r"takes nothing \(data.options\), got count",
    "my_env.py:make --data.chat false": "data.chat is read by runs that have a data.train and no",
    "needs_verifiers.py:make": "No module named 'verifiers.*: pip install verifiers",
}


@pytest.mark.parametrize("words", WRONG)
def test_an_environment_that_cannot_be_used_is_one_sentence_before_anything_is_written(
    folder, capsys, words
):
    (folder / "needs_verifiers.py").write_text("import verifiers.v1\n")
    if words.startswith("needs") and importlib.util.find_spec("verifiers"):
        pytest.skip("verifiers is installed")
    assert main(["train", "--sft", "null", "--task", *words.split()]) == 2
    sentence = capsys.readouterr().err
    assert re.search(WRONG[words], sentence) and sentence.count("\n") == 1, sentence
    assert not (folder / "runs").exists()


def test_what_an_environment_raises_is_said_with_its_file_and_line(folder):
    for part in ("reply", "score"):
        text = ENVIRONMENT.replace(
            f"def {part}(row, messages):", f"def {part}(row, messages):\n    1 / 0"
        )
        (folder / f"bad_{part}.py").write_text(text)
        with pytest.raises(
            RewardError, match=rf"{part} raised ZeroDivisionError.*bad_{part}.py, li"
        ):
            talk(f"bad_{part}.py:make", "7", "8", "9")


def test_an_environment_of_trls_has_its_tools_its_rows_and_its_reward(folder):
    keys = {"data.train": "rows.jsonl"}
    said = [call("step", by=1), call("step", by=2), "done", "done"]
    rows, task, policy, items = talk("my_env.py:Counter", *said, group_size=2, **keys)
    assert items[0].asked.messages[-1]["content"] == items[0].prompt
    assert items[0].prompt.endswith("? From 0.")
    assert [t["function"]["name"] for t in items[0].asked.tools] == ["step"]
    totals = [each[1]["content"] for each in rows.transcript]
    assert totals == ["now 1", "now 2"]
    assert rows.verdict == [float(items[0].answer == n) for n in "12"]
    with pytest.raises(RewardError, match="reset must return the same for the same row"):
        talk("my_env.py:Unsteady", "x", **keys)


def test_an_environment_is_tried_as_a_reward(folder, capsys):
    given = ["--task", "my_env.py:make", "--items", "2"]
    assert main(["reward", "task", *given]) == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.split("\n")]
    assert ["mean", "1.000", "0.000", "0.000"] in lines


def test_a_task_that_a_function_makes_is_taken_as_it_is(folder, capsys):
    (folder / "whole.py").write_text(
        "from rlkern.trainer.tasks.guess import guess\n"
        "def make(seed, eval_items, name='mine'):\n"
        "    import dataclasses\n"
        "    return dataclasses.replace(guess(seed=seed, eval_items=eval_items), name=name)\n"
    )
    task = make_task(of(**{"task": "whole.py:make", "eval.items": 7, "seed": 3}))
    assert (task.name, len(task.held_out), task.max_turns) == ("mine", 7, 3)
    assert (
        main(["train", "--task", "whole.py:make", "--data.system", "Hi", "--eval.items", "5"]) == 2
    )
    assert "is a Task, which makes its own items and does not read data.system" in (
        capsys.readouterr().err
    )


VERIFIERS = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str

class Sum(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward
    async def right(self, task, trace) -> float:
        return float(trace.last_reply == task.answer)

    @vf.reward(weight=0.5)
    async def short(self, trace) -> float:
        return float(len(trace.last_reply) < 3)

class Sums(vf.Taskset[Sum, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        n = 0
        while True:
            data = Data(prompt=f"{n}+1?", system_prompt="Add.", answer=str(n + 1))
            yield Sum(data, self.config.task)
            n += 1

def make():
    return Sums(vf.TasksetConfig(id="sums")).take(10)

def endless():
    return Sums(vf.TasksetConfig(id="sums"))
"""


def test_a_taskset_of_verifiers_is_asked_and_scored(folder, capsys):
    pytest.importorskip("verifiers.v1")
    (folder / "sums.py").write_text(VERIFIERS)
    rows, task, _, items = talk("sums.py:make", "1", "wrong", group_size=2)
    assert [m["content"] for m in items[0].asked.messages] == ["Add.", "0+1?"]
    assert rows.verdict == [1.0 * (items[0].answer == "1") + 0.5, 0.0]
    assert main(["train", "--task", "sums.py:endless"]) == 2
    assert "taskset without end: return taskset.take(1000)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ("calculator", "game"))
def test_the_examples_of_environments_run(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    page = importlib.import_module("own_environment")
    keys = {"sft.steps": 3, "sft.target": 0, "sft.batch": 8, "threads": 1, "batch.prompts": 4}
    more = {"rollout.group_size": 2, "eval.items": 4, "eval.modes": "sampled"}
    keys = {**keys, **more, "reward.degenerate_limit": 0}
    summary = page.main(name, folder=tmp_path, steps=1, **keys)
    assert 0 <= summary["eval/reward_sampled_after"] <= 1
    lines = read_metrics(tmp_path / f"own-{name}")
    assert lines[-1]["conversations/messages"] >= 1.0
    items = page.__dict__[name]().items
    right = items[0]["completion"]
    assert page.__dict__[name]().score(items[0], right) == 1.0
