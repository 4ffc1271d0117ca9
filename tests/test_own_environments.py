# SPDX-License-Identifier: Apache-2.0
"""Environments of one's own: who said what, what of it counts, what goes wrong in a call."""

import pytest
import torch
from environment_helpers import call, folder, talk  # noqa: F401
from trainer_helpers import compiled  # noqa: F401

from rlkern.trainer.data.render import chat_tokens, reply_ids
from rlkern.trainer.models.load import character_tokenizer
from rlkern.trainer.reward.functions import load_rewards, score_completions
from rlkern.trainer.rollout.talks import conversation_statistics
from rlkern.trainer.rollout.text import end_tokens
from rlkern.trainer.settings import of

pytestmark = pytest.mark.usefixtures("compiled", "folder")


def test_only_what_the_model_said_counts_and_all_is_as_the_template_renders_it():
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


def test_conversations_of_a_group_end_each_by_itself():
    said = ["9", call("add", a=2, b=3), "8…", "7", "6"]
    rows, *_ = talk("my_env.py:make", *said, group_size=2)
    first, second = ([m["content"] for m in each] for each in rows.transcript)
    assert first == ["9", "No, again: <x>", "8"]
    assert second == [said[1], "5", "7", "No, again: <x>", "6"]
    length = rows.present.sum(1)
    assert torch.equal(rows.present, torch.arange(rows.token.shape[1]) < length[:, None])
    assert rows.mask.sum(1).tolist() == [len("9") + 1 + len("8"), len(said[1]) + 1 + 2 + 2]


def test_a_message_that_was_cut_off_is_not_answered_and_the_last_one_neither():
    rows, *_ = talk("my_env.py:make", "7…")
    assert [m["role"] for m in rows.transcript[0]] == ["assistant"]
    rows, *_ = talk("my_env.py:make", "7", "8", turns=2)
    assert [m["role"] for m in rows.transcript[0]] == ["assistant", "user", "assistant"]


def test_a_conversation_ends_before_the_context_is_too_short(folder):  # noqa: F811
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
def test_what_goes_wrong_in_a_call_is_told_to_the_model_and_counted(said, words):
    rows, *_ = talk("my_env.py:make", said, "3", turns=2)
    message = rows.transcript[0][1]
    assert message["role"] == "tool" and message["failed"] and message["content"].startswith(words)
    found = conversation_statistics(rows)
    assert found["conversations/failed_calls"] == found["conversations/tool_calls"] == 1.0
    assert found["conversations/messages"] == 2.0


RETURNS = {
    "'a text'": "a text",
    "{'day': datetime.date(2026, 1, 2), 'n': [1, None]}": '{"day": "2026-01-02", "n": [1, null]}',
    "{(1, 2): 3}": "error: TypeError: keys must be str",
}


@pytest.mark.parametrize("value", RETURNS)
def test_what_a_tool_returns_is_told_as_json_if_it_is_no_text(folder, value):  # noqa: F811
    (folder / "returns.py").write_text(
        "import datetime\n"
        "from my_env import *\n"
        "def look() -> object:\n"
        '    """Looks."""\n'
        f"    return {value}\n"
        "def make():\n"
        "    return Environment(items=items(), score=score, tools=[look])\n"
    )
    rows, *_ = talk("returns.py:make", call("look"), "3", turns=2)
    assert rows.transcript[0][1]["content"].startswith(RETURNS[value])


def test_several_calls_of_a_message_are_answered_in_their_order():
    both = call("add", a=1, b=1) + call("add", a=2, b=2)
    rows, *_ = talk("my_env.py:make", both, "3", turns=2)
    assert [m["content"] for m in rows.transcript[0][1:3]] == ["2", "4"]


def test_the_model_is_shown_the_tools_and_the_reward_what_was_said():
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
