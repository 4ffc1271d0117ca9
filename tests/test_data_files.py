# SPDX-License-Identifier: Apache-2.0
"""Files of one's own are read whatever their form, and refused in a sentence with their place."""

import builtins
import json
import sys

import pytest

from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import Chat, identity
from rlkern.trainer.data.examples import Wording, examples
from rlkern.trainer.data.files import digest, records

ROWS = [{"prompt": f"{n}+1=", "answer": n + 1, "info": {"level": n}} for n in range(3)]
USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello."}
OTHER = {"role": "assistant", "content": "Go away."}


def lines(folder, rows, name="x.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(folder, rows, named=None, **wording):
    return examples(records(lines(folder, rows), "data.train"), named or {}, Wording(**wording))


def saved(folder, form):
    """Returns ROWS in a form, as others write it."""
    path = folder / f"rows{form}"
    if form == ".json":
        path.write_text(json.dumps(ROWS))
    elif form == ".jsonl":
        lines(folder, ROWS, path.name)
    elif form == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").Table.from_pylist(ROWS)
        parquet.write_table(table, path)
    else:
        pytest.importorskip("datasets").Dataset.from_list(ROWS).save_to_disk(path)
    return path


@pytest.mark.parametrize("form", [".jsonl", ".json", ".parquet", ""])
def test_every_form_of_a_file_holds_the_same_rows_and_a_digest_of_its_content(tmp_path, form):
    path = saved(tmp_path, form)
    found = records(path, "data.train")
    assert [record.values for record in found] == ROWS
    word = {".jsonl": "line", ".json": "entry"}.get(form, "row")
    assert found[2].where == f"{path}, {word} 3"
    before = digest(path)
    inside = next(p for p in sorted(path.rglob("*")) if p.is_file()) if path.is_dir() else path
    inside.write_bytes(inside.read_bytes() + b"\n")
    assert digest(path) != before


def test_nulls_that_arrow_puts_into_rows_without_a_key_are_no_values(tmp_path):
    rows = [{"messages": [USER, {**SAID, "name": "a"}]}, {"messages": [USER, SAID]}]
    path = tmp_path / "saved"
    pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(path)
    assert [record.values for record in records(path, "data.train")] == rows


def test_a_folder_of_splits_names_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(test=part, train=part).save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match=r"holds the splits test, train: name one, such as .*/test"):
        records(tmp_path / "both", "data.train")
    assert len(records(tmp_path / "both" / "train", "data.train")) == 3


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("no.jsonl", None, "data.train must be .* folder that datasets saved, there is nothing at"),
        ("x.csv", "a,b", r"data.train must be a .jsonl, .json, .parquet file or .* got .*x.csv"),
        ("x.jsonl", "\n", "must hold rows, it is empty"),
        ("x.json", "[]", "must hold rows, it is empty"),
        ("x.jsonl", '{"a": 1}\n{"a": \n', "x.jsonl, line 2 must be a JSON object: "),
        ("x.jsonl", "[1]\n", "line 1 must be a JSON object, got list"),
        ("x.json", '{"a": 1}', "must hold a JSON list of objects, got dict"),
        ("x.json", '[{"a": 1}, 2]', "entry 2 must be a JSON object, got int"),
        ("x.parquet", "no", "cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=words) as caught:
        records(tmp_path / name, "data.train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form, package", [(".parquet", "pyarrow"), ("", "datasets")])
def test_a_package_that_is_not_there_is_asked_for(tmp_path, monkeypatch, form, package):
    path = tmp_path / f"x{form}"
    path.touch() if form else path.mkdir()
    plain = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install rlkern"):
        records(path, "data.train")


def test_json_lines_need_no_other_package(tmp_path, monkeypatch):
    for name in ("datasets", "pyarrow", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(records(lines(tmp_path, ROWS), "data.train")) == 3


def test_the_usual_columns_and_every_column_for_rewards(tmp_path):
    (first, *_) = read(tmp_path, ROWS, chat=False)
    assert (first.prompt, first.answer, first.target) == ("0+1=", "1", None)
    assert first.columns == ROWS[0]
    (verl,) = read(
        tmp_path, [{"prompt": [USER], "reward_model": {"ground_truth": "7", "style": "rule"}}]
    )
    assert (verl.prompt, verl.answer) == (Chat((USER,)), "7")
    named = {"prompt": "frage", "answer": "info.right"}
    (other,) = read(tmp_path, [{"frage": "1+1", "info": {"right": 2}}], named, chat=False)
    assert (other.prompt, other.answer) == ("1+1", "2")


def test_a_text_is_a_users_message_where_there_is_a_template_and_text_where_there_is_none(tmp_path):
    (first, *_) = read(tmp_path, ROWS)
    assert first.prompt == Chat(({"role": "user", "content": "0+1="},), text="0+1=")
    (first, *_) = read(tmp_path, ROWS, system="Add.")
    system = {"role": "system", "content": "Add."}
    assert first.prompt.messages[0] == system and first.prompt.text is None
    (own,) = read(tmp_path, [{"prompt": [{**system, "content": "?"}, USER]}], system="Add.")
    assert own.prompt.messages == (system, USER)
    (first, *_) = read(tmp_path, ROWS, template="{prompt} (level {info[level]})")
    assert first.prompt == "0+1= (level 0)"


PAIR = {"chosen": [USER, SAID], "rejected": [USER, OTHER]}


@pytest.mark.parametrize(
    "row, prompt, target, rejected",
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a", "b", "c"),
        ({"chosen": "Q: x A: yes", "rejected": "Q: x A: no"}, "Q: x A:", " yes", " no"),
        ({"chosen": "one\ntwo", "rejected": "one\nthree"}, "one\n", "two", "three"),
        (PAIR, Chat((USER,)), (SAID,), (OTHER,)),
        ({**PAIR, "prompt": "Hi"}, Chat((USER,)), (SAID,), (OTHER,)),
        (
            {"prompt": [USER], "chosen": [SAID], "rejected": [OTHER]},
            Chat((USER,)),
            (SAID,),
            (OTHER,),
        ),
        ({"prompt": [USER], "completion": [SAID]}, Chat((USER,)), (SAID,), None),
        ({"prompt": [USER], "completion": "Hello."}, Chat((USER,)), "Hello.", None),
        ({"prompt": "a", "completion": "b", "label": True}, "a", "b", None),
        ({"messages": [USER, SAID, USER, SAID]}, Chat((USER,)), (SAID, USER, SAID), None),
        ({"messages": [USER]}, Chat((USER,)), None, None),
        ({"messages": [USER, SAID, USER]}, Chat((USER, SAID, USER)), None, None),
        ({"text": "Once."}, None, "Once.", None),
    ],
)
def test_every_format_is_a_prompt_with_what_is_learned(tmp_path, row, prompt, target, rejected):
    chat = False if isinstance(prompt, str) else None
    (found,) = read(tmp_path, [row], chat=chat)
    assert (found.prompt, found.target, found.rejected) == (prompt, target, rejected)
    assert found.label is row.get("label")


def test_tools_are_read_as_json_too_and_the_system_does_not_make_a_prompt_another_one(tmp_path):
    tool = {"type": "function", "function": {"name": "add"}}
    (found,) = read(tmp_path, [{"prompt": [USER], "tools": json.dumps([tool])}])
    assert found.prompt.tools == (tool,)
    (other,) = read(tmp_path, [{"prompt": [USER]}], system="x")
    assert identity(found.prompt) == identity(other.prompt)


@pytest.mark.parametrize(
    "rows, named, words",
    [
        ([{"a": 1}], {}, "line 1: there is no column to learn from"),
        ([{"a": 1}], {"prompt": "b"}, r"no column 'b' \(data.columns.prompt\); the file has a"),
        ([{"a": 1}], {"promt": "a"}, "data.columns.promt is none of .*did you mean prompt"),
        ([{"prompt": "a", "text": "b"}], {"text": "text"}, "data.columns.text is not read of rows"),
        ([{"prompt": "a"}, {"prompt": [USER]}], {}, "line 2: the prompts .* that of line 1 is"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "c"}], {}, "line 2, column answer must be"),
        ([{"prompt": "a", "x": 1}, {"x": 2}], {}, "line 2, column prompt must be there"),
        (
            [{"question": "a"}, {"question": "b"}, {"messages": [USER]}, {"messages": [USER]}],
            {},
            "line 3: the rows .* must all be of one form, this .* messages and line 1 has question",
        ),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "b"}],
            {},
            "line 2: .* one form, this one has prompt and line 1 has completion",
        ),
        ([{"prompt": ""}], {}, "line 1, column prompt must be a text, got ''"),
        ([{"prompt": 3}], {}, "line 1, column prompt must be a text, got 3"),
        ([{"prompt": [SAID]}], {}, "line 1, column prompt must end with a message that the assi"),
        ([{"prompt": [USER, 1]}], {}, "column prompt, message 2 must have a role and a content"),
        ([{"messages": [{"role": "user"}]}], {}, "message 1 must have a text as its content"),
        ([{"messages": []}], {}, "column messages must be a list of messages"),
        ([{"messages": [SAID, USER]}], {}, "must not begin with the assistant"),
        ([{"prompt": "a", "completion": "b", "label": 1}], {}, "label must be true or false"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], {}, "two different answers"),
        ([{"prompt": "a", "chosen": "b", "rejected": [SAID]}], {}, "must be of the form of chosen"),
        ([{"chosen": "b", "rejected": "c"}], {}, "line 1 has no prompt"),
        ([{"completion": "c"}], {}, "line 1 has no prompt; name its column"),
        ([{"prompt": "a", "completion": [USER]}], {}, "must begin and end with messages of the"),
        (
            [{"prompt": "a", "item": 3}],
            {},
            "line 1: column 'item' has the name of another argument",
        ),
        ([{"prompt": [USER], "tools": "{"}], {}, "column tools must be a JSON list"),
    ],
)
def test_a_row_of_another_form_is_named_by_line_and_column(tmp_path, rows, named, words):
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, rows, named)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wording, words",
    [
        ({"chat": False}, "column prompt must hold a prompt that can be put: data.chat false is"),
        ({"template": "{prompt}"}, "column prompt must hold .* be put: data.template is for text"),
    ],
)
def test_a_prompt_that_cannot_be_put_is_named(tmp_path, wording, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, [{"prompt": [USER]}], **wording)
    with pytest.raises(UserError, match="line 1: data.template"):
        read(tmp_path, ROWS, template="{answer.x}")
