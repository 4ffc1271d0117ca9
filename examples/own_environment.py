# SPDX-License-Identifier: Apache-2.0
"""Your own environments, as two functions: a calculator that the model may call, and a game.

python examples/own_environment.py calculator    a tool computes sums
python examples/own_environment.py game          the model asks until it finds a hidden number

The same from the command line, with any reward or setting of a run:

rlkern train --task examples/own_environment.py:calculator --data.options.largest 30
rlkern train --task examples/own_environment.py:game
"""

import json
import random
import sys
from pathlib import Path

from rlkern.trainer import train
from rlkern.trainer.settings import of
from rlkern.trainer.tasks.environment import Environment


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def call(name, **arguments):
    """Returns a call as the model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def add(a: int, b: int) -> str:
    """Returns the sum of two whole numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return str(a + b)


def calculator(largest=30):
    """Returns an environment of sums with a tool; its items show how the tool is used."""

    def item(a, b):
        said = [
            assistant(call("add", a=a, b=b)),
            {"role": "tool", "name": "add", "content": str(a + b)},
            assistant(str(a + b)),
        ]
        return {"prompt": f"{a}+{b}?", "answer": str(a + b), "completion": said}

    def score(row, messages):
        """Returns 1 if the last message is right, but 0.9 if the model did not call the tool."""
        used = any(m["role"] == "tool" and not m.get("failed") for m in messages)
        return float(messages[-1]["content"].strip() == row["answer"]) * (1.0 if used else 0.9)

    items = [item(a, b) for a in range(largest) for b in range(largest)]
    return Environment(items=items, score=score, tools=[add], max_turns=2, max_new_tokens=80)


def game(largest=9, turns=3, seed=0):
    """Returns the game of a hidden number: the model asks, and hears whether it is less or more."""
    draw = random.Random(seed)

    def reply(row, messages):
        asked = messages[-1]["content"].strip()
        if not asked.isdecimal() or int(asked) == row["hidden"]:
            return None
        return "more" if row["hidden"] > int(asked) else "less"

    def score(row, messages):
        return float(messages[-1]["content"].strip() == str(row["hidden"]))

    def play(low, high, hidden):
        """Returns a conversation that asks for numbers that are left and finds the hidden one."""
        said = []
        while len(said) < 2 * turns - 1:
            asked = draw.randint(low, high)
            said.append(assistant(str(asked)))
            heard = reply({"hidden": hidden}, said)
            if heard is None:
                return said
            said.append(user(heard))
            low, high = (asked + 1, high) if heard == "more" else (low, asked - 1)
        return None

    items = []
    for low in range(largest + 1):
        for high in range(low, largest + 1):
            for hidden in range(low, high + 1):
                while (said := play(low, high, hidden)) is None:
                    pass
                row = {"prompt": f"{low} to {high}", "hidden": hidden, "completion": said}
                items.append(row)
    draw.shuffle(items)
    return Environment(items=items, score=score, reply=reply, max_turns=turns, max_new_tokens=4)


def main(name="calculator", folder="runs", steps=30, **keys):
    """Returns the summary of a run, with the held-out reward before and after it."""
    settings = {
        "task": f"{Path(__file__).resolve()}:{name}",
        "name": f"own-{name}",
        "sft.steps": 150,
        "sft.target": 0,
        "sft.batch": 32,
        "eval.items": 50,
        "steps": steps,
        "output.dir": str(folder),
    }
    return train(of(**{**settings, **keys}))


if __name__ == "__main__":
    summary = main(*sys.argv[1:2])
    for when in ("before", "after"):
        print(f"held-out reward {when}: {summary[f'eval/reward_sampled_{when}']:.3f}")
