# SPDX-License-Identifier: Apache-2.0
"""From the columns of a file to what can be learned from its rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import ASSISTANT, SYSTEM, USER, Answer, Chat, Prompt, messages
from rlkern.trainer.data.columns import ROLES, Row, columns_of
from rlkern.trainer.data.files import Record

# Names by which a reward function is given something else.
_TAKEN = ("prompts", "completions", "item")


@dataclass(frozen=True)
class Example:
    """A row of a file.

    prompt    what the model goes on with; None for plain text, which has none
    answer    what a reward compares with, as text; None if there is none
    target    what the model should say: a completion, the chosen answer, the text itself
    rejected  what it should not say
    label     whether the target is desirable, of a row that is judged by itself
    answered  the prompt was found by taking the answers out of a whole conversation
    columns   every column of the row, for rewards
    """

    where: str
    prompt: Prompt | None
    answer: str | None = None
    target: Answer | None = None
    rejected: Answer | None = None
    label: bool | None = None
    answered: bool = False
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wording:
    """How prompts are put: data.system, data.chat, data.template."""

    system: str | None = None
    chat: bool | None = None
    template: str | None = None


def examples(records: list[Record], named: Mapping[str, str], wording: Wording) -> list[Example]:
    """Returns what the rows of a file are; Raises UserError for the first that is like no other,
    with its place and its column."""
    columns = columns_of(records, named)
    clash = next((name for name in _TAKEN if name in records[0].values), None)
    if clash:
        raise UserError(
            f"{records[0].where}: column {clash!r} has the name of another argument of reward"
            " functions; rename the column"
        )
    needed, make = _form(columns, named, records[0].where, wording)
    rows = [Row(record, columns) for record in records]
    _check_one_form(rows, needed)
    found = [make(row, wording) for row in rows]
    first = found[0]
    other = next((each for each in found if type(each.prompt) is not type(first.prompt)), None)
    # Text that a template turns into messages is one of the two already.
    if other is None:
        other = next((each for each in found if _is_text(each) is not _is_text(first)), None)
    if other is not None:
        raise UserError(
            f"{other.where}: the prompts of a file must all be text or all be messages, and that of"
            f" {first.where.rpartition(', ')[2]} is of the other kind"
        )
    return found


def _is_text(example: Example) -> bool:
    return isinstance(example.prompt, Chat) and example.prompt.text is not None


def _example(row: Row, **known: Any) -> Example:
    """Returns a row as an example, with its answer and all of its columns."""
    answer = _as_text(row.get("answer")) if row.has("answer") else None
    return Example(row.where, answer=answer, columns=dict(row.values), **known)


def _as_text(value: Any) -> str:
    """Returns an answer as text, of a number its digits.

    >>> _as_text(42), _as_text("x"), _as_text([1, "a"])
    ('42', 'x', '[1, "a"]')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_Maker = Callable[[Row, Wording], Example]


def _check_one_form(rows: list[Row], needed: str) -> None:
    """Raises UserError for the first row that is of another form than the first one."""
    whole = [row.has_all(needed) for row in rows]
    other = next((n for n, each in enumerate(whole) if each is not whole[0]), None)
    if other is None:
        return
    pair = rows[0], rows[other]
    forms = [next((each for each, *_ in _FORMS if row.has_all(each)), "") for row in pair]
    if all(forms):  # else a column of the one form is missing, and is named
        has = [
            " and ".join(row.name(role) for role in each.split()) for row, each in zip(pair, forms)
        ]
        raise UserError(
            f"{rows[other].where}: the rows of a file must all be of one form, this one has"
            f" {has[1]} and {rows[0].where.rpartition(', ')[2]} has {has[0]}"
        )


def _form(
    columns: Mapping[str, str], named: Mapping[str, str], where: str, wording: Wording
) -> tuple[str, _Maker]:
    """Returns the columns that a row must have and what makes an example of it, by the columns of
    its file; Raises UserError if that would not read a column that was named."""
    here = {*columns, *(["prompt"] if wording.template is not None else [])}
    for needed, more, make in _FORMS:
        if here.issuperset(needed.split()):
            unread = {*named} - {*needed.split(), *more.split(), "answer", "tools"}
            if unread:
                raise UserError(
                    f"{where}: data.columns.{min(unread)} is not read of rows that have"
                    f" {' and '.join(columns[r] for r in needed.split() if r in columns)}"
                )
            return needed, make
    raise UserError(
        f"{where}: there is no column to learn from ({', '.join(ROLES)}); name it, for example"
        " --data.columns.prompt NAME"
    )


def _pair(row: Row, wording: Wording) -> Example:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen == rejected:
        raise UserError(f"{row.where} must have two different answers, both are {chosen!r:.60}")
    if type(chosen) is not type(rejected):
        raise UserError(f"{row.place('rejected')} must be of the form of chosen, text or messages")
    if isinstance(chosen, list):
        better, worse = (messages(row.get(r), row.place(r)) for r in ("chosen", "rejected"))
        if better[0]["role"] == ASSISTANT:
            prompt = _prompt(row, wording)
        else:  # whole conversations, whose beginnings are the prompt
            both = list(zip(better[:-1], worse[:-1]))
            same = next((n for n, (a, b) in enumerate(both) if a != b), len(both))
            prompt = _of_messages(row, better[:same], "chosen", wording)
            better, worse = better[same:], worse[same:]
        for role, said in (("chosen", better), ("rejected", worse)):
            if said[-1]["role"] != ASSISTANT:
                raise UserError(f"{row.place(role)} must end with a message of the assistant")
        return _example(row, prompt=prompt, target=better, rejected=worse)
    texts = [_text(row, role) for role in ("chosen", "rejected")]
    if row.has("prompt") or wording.template is not None:
        return _example(row, prompt=_prompt(row, wording), target=texts[0], rejected=texts[1])
    prompt = _common(*texts)
    if not prompt:
        raise UserError(f"{row.where} has no prompt, and its answers do not begin with one")
    chosen, rejected = (text[len(prompt) :] for text in texts)
    return _example(row, prompt=prompt, target=chosen, rejected=rejected)


def _common(one: str, other: str) -> str:
    """Returns what two texts begin with, up to the blank before the word in which they part.

    >>> _common("Say: hello you", "Say: help")
    'Say:'
    """
    same = os.path.commonprefix([one, other])
    if len(same) in (len(one), len(other)):
        same = same[:-1]
    end = max(same.rfind(" "), same.rfind("\n") + 1)
    return same[: max(0, end)]


def _judged(row: Row, wording: Wording) -> Example:
    label = row.get("label")
    if not isinstance(label, bool):
        raise UserError(f"{row.place('label')} must be true or false, got {label!r:.60}")
    return _example(row, prompt=_prompt(row, wording), target=_completion(row), label=label)


def _completed(row: Row, wording: Wording) -> Example:
    return _example(row, prompt=_prompt(row, wording), target=_completion(row))


def _completion(row: Row) -> Answer:
    if isinstance(row.get("completion"), list):
        said = messages(row.get("completion"), row.place("completion"))
        if {said[0]["role"], said[-1]["role"]} != {ASSISTANT}:
            raise UserError(
                f"{row.place('completion')} must begin and end with messages of the assistant"
            )
        return said
    return _text(row, "completion")


def _conversation(row: Row, wording: Wording) -> Example:
    said = messages(row.get("messages"), row.place("messages"))
    first = next((n for n, m in enumerate(said) if m["role"] == ASSISTANT), len(said))
    if first == 0:
        raise UserError(f"{row.place('messages')} must not begin with the assistant")
    if said[-1]["role"] != ASSISTANT:  # a prompt, whatever was said in it before
        return _example(row, prompt=_of_messages(row, said, "messages", wording))
    prompt = _of_messages(row, said[:first], "messages", wording)
    return _example(row, prompt=prompt, target=said[first:], answered=not row.has("prompt"))


def _plain(row: Row, wording: Wording) -> Example:
    return _example(row, prompt=None, target=_text(row, "text"))


def _asked(row: Row, wording: Wording) -> Example:
    return _example(row, prompt=_prompt(row, wording))


# Tried in this order: the columns that make a form, others that it reads, what makes an example.
_FORMS: tuple[tuple[str, str, _Maker], ...] = (
    ("chosen rejected", "prompt", _pair),
    ("completion label", "prompt", _judged),
    ("completion", "prompt", _completed),
    ("messages", "prompt", _conversation),
    ("prompt", "", _asked),
    ("text", "", _plain),
)


def _text(row: Row, role: str) -> str:
    value = row.get(role)
    if not isinstance(value, str) or not value:
        raise UserError(f"{row.place(role)} must be a text, got {value!r:.60}")
    return value


def _prompt(row: Row, wording: Wording) -> Prompt:
    """Returns the prompt of a row: its text in data.template, or a conversation."""
    if wording.template is not None and not isinstance(row.optional("prompt"), list):
        return _in_template(row, wording.template)
    if not row.has("prompt"):
        raise UserError(f"{row.where} has no prompt; name its column: --data.columns.prompt NAME")
    value = row.get("prompt")
    if isinstance(value, list):
        said = messages(value, row.place("prompt"))
        if said[-1]["role"] == ASSISTANT:
            raise UserError(
                f"{row.place('prompt')} must end with a message that the assistant answers, it ends"
                " with the assistant's"
            )
        return _of_messages(row, said, "prompt", wording)
    text = _text(row, "prompt")
    if wording.chat is False:
        return text
    plain = None if wording.chat or wording.system is not None else text
    asked = ({"role": USER, "content": text},)
    return Chat(_under_system(asked, wording.system), _tools(row), plain)


def _in_template(row: Row, template: str) -> str:
    try:
        return template.format(**row.values)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{row.where}: data.template must name only its columns, {', '.join(row.values)}, got"
            f" {template!r}: {error}"
        ) from error


def _of_messages(row: Row, said: tuple, role: str, wording: Wording) -> Chat:
    if not said or wording.chat is False or wording.template is not None:
        key = "data.chat false" if wording.chat is False else "data.template"
        why = f"{key} is for text" if said else "it has no message before the answers"
        raise UserError(f"{row.place(role)} must hold a prompt that can be put: {why}")
    return Chat(_under_system(said, wording.system), _tools(row))


def _under_system(said: tuple, system: str | None) -> tuple:
    if system is None:
        return said
    return ({"role": SYSTEM, "content": system}, *(m for m in said if m["role"] != SYSTEM))


def _tools(row: Row) -> tuple:
    given = row.optional("tools")
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise UserError(f"{row.place('tools')} must be a JSON list: {error}") from error
    if given is not None and not isinstance(given, list):
        raise UserError(f"{row.place('tools')} must be a list, got {type(given).__name__}")
    return tuple(given or ())
