# SPDX-License-Identifier: Apache-2.0
"""Environments in a file, and conversations whose messages are given."""

import json

import pytest
import torch

from rlkern.trainer.models.load import make_policy
from rlkern.trainer.rollout.fitting import fitted
from rlkern.trainer.rollout.sampler import Sampling
from rlkern.trainer.rollout.text import stop_tokens
from rlkern.trainer.rollout.turns import converse
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import of
from rlkern.trainer.tasks.registry import make_task

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
