# SPDX-License-Identifier: Apache-2.0
"""Tasksets of verifiers as tasks: how they are asked and scored, and which are refused and why."""

import re

import pytest

pytest.importorskip("verifiers.v1")

from environment_helpers import folder, talk  # noqa: E402, F401

from rlkern.cli import main  # noqa: E402
from rlkern.runs.errors import UserError  # noqa: E402
from rlkern.trainer.settings import of  # noqa: E402
from rlkern.trainer.tasks.registry import make_task  # noqa: E402

SUMS = """
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

class Asking(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def replies(self, trace) -> float:
        return float(trace.num_turns) + 10 * len(trace.nodes) + 100 * trace.nodes[-1].parent

def of(asked, task=Asking):
    class Made(vf.Taskset[task, vf.TasksetConfig]):
        def load(self):
            for n in range(6):
                yield task(vf.TaskData(**asked(n)), self.config.task)
    return Made(vf.TasksetConfig(id="made"))

def hi(n):
    return {"prompt": f"Hi {n}."}

def make():
    return Sums(vf.TasksetConfig(id="sums")).take(10)

def endless():
    return Sums(vf.TasksetConfig(id="sums"))

def messages():
    def asked(n):
        said = [("user", "Hi."), ("assistant", "Hello."), ("user", f"{n}+2?")]
        return {"prompt": [{"role": role, "content": text} for role, text in said]}
    return of(asked)

def none():
    return of(lambda n: {"system_prompt": f"Say {n}."})

class Running(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def runs(self, trace, runtime) -> float:
        return 1.0

def running():
    return of(hi, Running)

class Offered(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def runs(self, trace, runtime=None) -> float:
        return float(runtime is None)

def offered():
    return of(hi, Offered)

class Search(vf.Toolset):
    @vf.tool
    async def search(self, words: str) -> str:
        "Searches."
        return words

class Searching(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Search]

def tools_of_a_task():
    return of(hi, Searching)

class Shared(vf.Taskset[Asking, vf.TasksetConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Search]

    def load(self):
        yield Asking(vf.TaskData(prompt="Hi."), self.config.task)

def tools_of_all():
    return Shared(vf.TasksetConfig(id="shared"))

class Playing(vf.Env):
    def __init__(self):
        pass

    async def run(self, task, agents):
        pass

def playing():
    return Playing()
"""


@pytest.fixture(autouse=True)
def sums(folder):  # noqa: F811
    (folder / "sums.py").write_text(SUMS)
    return folder


def test_a_taskset_is_asked_and_scored():
    rows, _, _, items = talk("sums.py:make", "1", "wrong", group_size=2)
    assert [m["content"] for m in items[0].asked.messages] == ["Add.", "0+1?"]
    assert [m["role"] for m in items[0].asked.messages] == ["system", "user"]
    assert rows.verdict == [1.0 * (items[0].answer == "1") + 0.5, 0.0]


def test_a_prompt_of_messages_is_asked_as_it_is():
    _, _, _, items = talk("sums.py:messages", "4")
    said = [(m["role"], m["content"]) for m in items[0].asked.messages]
    assert said == [("user", "Hi."), ("assistant", "Hello."), ("user", "0+2?")]
    assert all(m.keys() == {"role", "content"} for m in items[0].asked.messages)


def test_a_task_without_a_prompt_asks_with_its_system_message():
    _, _, _, items = talk("sums.py:none", "4")
    said = [(m["role"], m["content"]) for m in items[0].asked.messages]
    assert said == [("system", "Say 0."), ("user", "")]


def test_the_trace_that_a_reward_reads_has_the_question_and_one_answer():
    rows, _, _, _ = talk("sums.py:messages", "4", turns=1)
    assert rows.verdict == [1.0 + 10 * 2 + 100 * 0]  # the answer is a child of the question


def test_a_reward_that_can_do_without_a_runtime_is_asked_without_one():
    rows, _, _, _ = talk("sums.py:offered", "4")
    assert rows.verdict == [1.0]


REFUSED = {
    "endless": "is a taskset without end: return taskset.take(1000)",
    "running": "its reward runs needs a runtime, which rlkern does not start",
    "tools_of_a_task": "has toolsets, which verifiers serves over MCP",
    "tools_of_all": "has toolsets, which verifiers serves over MCP",
    "playing": "is a verifiers Env, which drives its agents itself; return its taskset",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_one_sentence_before_anything_is_written(sums, capsys, name):
    with pytest.raises(UserError, match=re.escape(REFUSED[name])):
        make_task(of(task=f"sums.py:{name}", sft=None))
    assert main(["train", "--sft", "null", "--task", f"sums.py:{name}"]) == 2
    said = capsys.readouterr().err
    assert REFUSED[name] in said and said.count("\n") == 1
    assert not (sums / "runs").exists()
