# SPDX-License-Identifier: Apache-2.0
"""The smallest thing that a key of the data changes: how a prompt is put, where an answer ends,
which rows are too long; and what `--show` prints of it."""

import json

import pytest
from data_helpers import asked, data_file, said, sums, write
from keys_helpers import run_of, step
from rich.console import Console
from trainer_helpers import ROOT, compiled, loaded, small  # noqa: F401

from rlkern.cli import main
from rlkern.trainer import UserError
from rlkern.trainer.offline.supervised import right_answers
from rlkern.trainer.preview import preview

pytestmark = pytest.mark.usefixtures("compiled")
FEW = {"rollout__max_new_tokens": 4, "sft": None, "eval__items": 20}


def own(tmp_path, path, **changes):
    return small(tmp_path, data__train=str(path), **{**FEW, **changes})


def begins(tmp_path, path, **changes):
    """Returns the text of the first prompt that a step samples answers to."""
    run = run_of(tmp_path, data__train=str(path), **{**FEW, **changes})
    seen, plain = [], run.parts.engine.sample

    def look(prompts, *rest, **more):
        seen.append(prompts)
        return plain(prompts, *rest, **more)

    object.__setattr__(run.parts.engine, "sample", look)
    step(run)
    token, mask = seen[0].token[0], seen[0].mask[0]
    return run.parts.policy.tokenizer.decode(token[mask])


def test_a_system_message_begins_every_conversation(tmp_path):
    path = data_file(tmp_path, "chats")
    found = begins(tmp_path, path, data__system="Add.")
    assert found.startswith("<system>Add.<eos><user>") and found.endswith("=<eos><assistant>")
    assert begins(tmp_path / "other", path).startswith("<user>")


def test_a_text_is_a_message_where_data_chat_says_so(tmp_path):
    path = data_file(tmp_path, "prompts")
    assert "<" not in begins(tmp_path, path)  # the tiny model has no template of itself
    found = begins(tmp_path / "chat", path, data__chat=True)
    assert found.startswith("<user>") and found.endswith("=<eos><assistant>")


def test_a_text_is_put_as_data_template_says(tmp_path):
    path = data_file(tmp_path, "prompts")
    found = begins(tmp_path, path, data__template="{prompt} is ")
    assert found.endswith("= is ")


def test_an_answer_ends_at_data_stop(tmp_path):
    path = data_file(tmp_path, "prompts")
    parts = loaded(own(tmp_path, path, data__stop="7"))
    (seven,) = parts.policy.tokenizer.encode("7")
    assert seven in parts.sampling.stop.tolist()
    items, _ = parts.task.next_items(0, 1)
    rows = right_answers(parts.policy, items, parts.task)
    assert parts.policy.tokenizer.decode(rows.token[0]) == f"{items[0].answer}7"


LONG = [(a, b) for a, b in sums() if a] + [(10**9, b) for b in range(10)]


def test_prompts_that_are_too_long_are_left_out_or_cut_and_counted(tmp_path):
    path = data_file(tmp_path, "prompts", LONG)
    parts = loaded(own(tmp_path, path, data__max_prompt=8))
    every = (*parts.task.rows, *parts.task.held_out)
    assert len(every) == 90 and all(len(item.prompt) == 4 for item in every)
    (note,) = parts.task.notes[1:]
    assert note.startswith(
        "10 rows left out, which do not fit 8 tokens of prompt (data.max_prompt)"
    )
    assert "prompts.jsonl, line 9" in note and "with 13 tokens" in note
    parts = loaded(own(tmp_path, path, data__max_prompt=8, data__too_long="truncate"))
    assert len(parts.task.rows) + len(parts.task.held_out) == 100
    assert parts.task.notes[1] == "10 prompts are cut to their last 8 tokens (data.max_prompt)"
    long = next(item for item in parts.task.rows if len(item.prompt) > 4)
    rows = right_answers(parts.policy, [long], parts.task)
    assert parts.policy.tokenizer.decode(rows.prompt[0]) == long.prompt[-8:]
    found = begins(tmp_path, path, data__max_prompt=3, data__too_long="truncate")
    assert len(found) == 3 and found.endswith("=")


def test_rows_that_do_not_fit_the_model_are_left_out_with_no_key_given(tmp_path):
    rows = [{"prompt": "9" * 600 + "+1=", "answer": 1}]
    rows += [{"prompt": f"{a}+{b}=", "answer": a + b} for a, b in sums()]
    parts = loaded(own(tmp_path, write(tmp_path / "x.jsonl", rows)))
    assert len(parts.task.rows) + len(parts.task.held_out) == 100
    assert "1 rows left out, which do not fit 508 tokens" in parts.task.notes[1]
    long = {(9, 9): "1" * 600}
    messages = [
        {"messages": [*asked(a, b), said("assistant", long.get((a, b), "2"))]} for a, b in sums()
    ]
    parts = loaded(
        small(tmp_path, algorithm="sft", data__train=str(write(tmp_path / "y.jsonl", messages)))
    )
    assert len(parts.task.rows) + len(parts.task.held_out) == 99


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"data__max_prompt": 2},
            "must keep rows to learn from and to hold out: 100 rows left out",
        ),
        ({"data__max_prompt": 510}, "data.max_prompt 510 and 4 new tokens .* context of 512"),
    ],
)
def test_a_limit_that_leaves_nothing_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        loaded(own(tmp_path, data_file(tmp_path, "prompts"), **changes))


def test_text_that_a_model_has_no_token_for_is_named_by_its_line(tmp_path):
    loaded(own(tmp_path, data_file(tmp_path, "prompts"))).policy.save(tmp_path / "model")
    rows = [{"prompt": f"{a}+{b}=", "answer": a + b} for a, b in sums()]
    rows[6] = {"prompt": "six?", "answer": 6}
    path = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(
        UserError, match="x.jsonl, line 7: the model has no token for some of the text"
    ):
        loaded(own(tmp_path, path, model=str(tmp_path / "model")))


def test_messages_need_a_model_with_a_template(tmp_path):
    loaded(own(tmp_path, data_file(tmp_path, "prompts"))).policy.save(tmp_path / "model")
    with pytest.raises(
        UserError, match="need a chat template, which the model's tokenizer has not"
    ):
        loaded(own(tmp_path, data_file(tmp_path, "chats"), model=str(tmp_path / "model")))


def shown(settings, count=2):
    console = Console(width=200, record=True, file=open("/dev/null", "w"), color_system="truecolor")
    preview(settings, count, console)
    return console.export_text(styles=True)


@pytest.mark.parametrize(
    "algorithm, form, learned, only_read",
    [
        ("grpo", "chats", None, None),
        ("sft", "turns", "<eos>", "<user>"),
        ("sft", "text", "<eos>", None),
        ("dpo", "chat_pairs", "<eos>", None),
        ("kto", "labels", "<eos>", None),
        ("reward_model", "pairs", "<eos>", None),
    ],
)
def test_examples_are_shown_in_colours_and_nothing_is_written(
    tmp_path, algorithm, form, learned, only_read
):
    given = {"sft": None} if algorithm != "grpo" else {"sft": None, "rollout__max_new_tokens": 4}
    path = data_file(tmp_path, form)
    text = shown(small(tmp_path, algorithm=algorithm, data__train=str(path), **given))
    assert f"{form}.jsonl: 80 rows to learn from" in text and "example 2" in text
    assert "example 3" not in text
    green, yellow = "\x1b[1;32m", "\x1b[33m"
    of_learned = [part.split("\x1b")[0] for part in text.split(green)[1:]]
    of_read = [part.split("\x1b")[0] for part in text.split(yellow)[1:]]
    assert any(learned in part for part in of_learned) if learned else "learned of" not in text
    if only_read:
        assert any(only_read in part for part in of_read)
    assert not (tmp_path / "runs").exists()


def test_an_example_that_is_asked_shows_the_right_answer_if_there_is_one(tmp_path):
    given = {"sft": None, "rollout__max_new_tokens": 4}
    rows = [{"prompt": f"{n}+1="} for n in range(9)]
    without = tmp_path / "without.jsonl"
    without.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "answers.jsonl").write_text(
        "\n".join(json.dumps({**row, "answer": str(n + 1)}) for n, row in enumerate(rows))
    )
    text = shown(small(tmp_path, data__train=str(tmp_path / "answers.jsonl"), **given))
    assert text.count(", right is '") == 2
    own = {"reward__functions": "trainer_rewards:right_digits"}
    text = shown(small(tmp_path, data__train=str(without), **given, **own))
    assert "example 1" in text and "right is" not in text


def test_the_command_line_shows_and_stops(tmp_path, capsys):
    path = data_file(tmp_path, "prompts")
    given = [
        "--data",
        str(path),
        "--rollout.max_new_tokens",
        "4",
        "--output.dir",
        str(tmp_path / "r"),
    ]
    assert main(["train", *given, "--sft", "null", "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert "example 1 (" in out and "4 tokens of prompt" in out
    assert not (tmp_path / "r").exists()
    assert main(["train", *given, "--show", "0"]) == 2
    assert "show must be at least 1" in capsys.readouterr().err


def test_a_run_on_a_file_is_evaluated_by_its_own_reward(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    path = data_file(tmp_path, "prompts")
    given = ["--data.train", path, "--rollout.max_new_tokens", 4, "--output.dir", tmp_path / "r"]
    given += ["--sft", "null", "--steps", 1, "--eval.items", 10, "--threads", 1, "--name", "x"]
    reward = "trainer_rewards:even_digits"
    assert main(["train", *map(str, given), "--reward", reward]) == 0
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "r" / "x"), "--json", "--checkpoint", "newest"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = json.loads((tmp_path / "r" / "x" / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["task"] == "prompts.jsonl" and found["items"] == 10
    for mode in ("sampled", "greedy"):
        assert found[f"eval/reward_{mode}"] == pytest.approx(last[f"eval/reward_{mode}"])


def test_a_step_that_cuts_its_answers_off_says_which_key_to_change(tmp_path):
    run = run_of(tmp_path, data__train=str(data_file(tmp_path, "prompts")), **FEW)
    said_, plain = [], run.parts.sampling.stop
    object.__setattr__(run.parts.sampling, "stop", plain[:0])
    values, _ = run.learner.step(run.updater, said_.append)
    assert values["completions/clipped_ratio"] == 1.0
    assert any("100% of the answers were cut off at 4 tokens" in x for x in said_)
    assert any("raise rollout.max_new_tokens" in x for x in said_)
