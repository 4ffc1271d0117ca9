# SPDX-License-Identifier: Apache-2.0
"""A reward of one's own in a file, beside the rows that it is asked about."""

import json

import pytest

REWARD = """
def score(prompts, completions, answer, **columns):
    return [float(text.strip() == right) for text, right in zip(completions, answer)]

def level(prompts, completions, level):
    return [float(n) for n in level]

def needs_state(prompts, completions, trainer_state):
    return [0.0] * len(prompts)

def no_answers(prompts):
    return [0.0] * len(prompts)

number = 3
"""


@pytest.fixture(name="folder")
def reward_folder(tmp_path, monkeypatch):
    """A folder with a reward and sums, where one stands."""
    (tmp_path / "my_reward.py").write_text(REWARD)
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1), "level": n} for n in range(20)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    return tmp_path
