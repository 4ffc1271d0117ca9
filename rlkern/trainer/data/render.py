# SPDX-License-Identifier: Apache-2.0
"""From conversations to token ids, through the chat template of a tokenizer.

A conversation is rendered as a whole, and its prompt is rendered up to where the model writes; what
is learned and what is sampled from therefore begin with the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import ASSISTANT, USER, Answer, Chat, Message, Prompt, shown

# What stands for an earlier message of the model.
_PLACE = "rlkern-was-here"
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Tokens(NamedTuple):
    """A prompt and what follows it: ids, and which of the latter the model should have written."""

    prompt: list[int]
    answer: list[int]
    counts: list[bool]


def is_text(tokenizer: Any, prompt: Prompt | None) -> bool:
    """Returns whether a prompt stays text under a tokenizer, no template ending its answer; Raises
    UserError for messages and a tokenizer without a chat template."""
    if not isinstance(prompt, Chat):
        return True
    if not tokenizer.chat_template and prompt.text is None:
        raise UserError(no_template(shown(prompt)))
    return not tokenizer.chat_template


def no_template(text: str) -> str:
    """Returns what is said of messages and a tokenizer without a chat template."""
    return (
        "messages, data.system and data.chat need a chat template, which the model's tokenizer has"
        f" not: use an instruct model, or prompts of text, got {text[:60]!r}"
    )


def chat_prompt_ids(tokenizer: Any, chat: Chat) -> list[int]:
    """Returns the ids that a model goes on from: the messages and what begins an answer."""
    return _encoded(tokenizer, _rendered(tokenizer, chat.messages, chat.tools, start=True))


def reply_ids(tokenizer: Any, said: Sequence[Message], ends: Collection[int]) -> list[int]:
    """Returns the ids of messages that answer the model's, and of what begins its next one; those
    that end the message before them are the model's own."""
    before = ({"role": USER, "content": "?"}, {"role": ASSISTANT, "content": _PLACE})
    alone = _rendered(tokenizer, before, (), start=False)
    whole = _rendered(tokenizer, (*before, *said), (), start=True)
    if _PLACE not in alone or _PLACE not in whole:
        raise UserError(
            "the model's chat template changes the assistant's text, so a conversation cannot"
            " continue; use another template"
        )
    closing, ids = (_encoded(tokenizer, text.partition(_PLACE)[2]) for text in (alone, whole))
    own = next((n + 1 for n, i in enumerate(closing) if i in ends), 0)
    return ids[own:]


def chat_tokens(tokenizer: Any, chat: Chat, answer: Answer, ends: Collection[int]) -> Tokens:
    """Returns a conversation and its given answer, a text or the messages that follow.

    ends  ids of which one ends a message; an answer that has none gets the end of text
    """
    said = ({"role": ASSISTANT, "content": answer},) if isinstance(answer, str) else answer
    marked = _MARKED.search(_template(tokenizer))
    return (_by_marks if marked else _by_prefixes)(tokenizer, chat, said, ends)


def _template(tokenizer: Any) -> str:
    found = tokenizer.chat_template
    if isinstance(found, dict):
        return str(found.get("default", ""))
    return found or ""


def _rendered(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], *, start: bool
) -> str:
    """Returns messages as text, with what begins an answer if `start`."""
    return _applied(tokenizer, messages, tools, add_generation_prompt=start, tokenize=False)


def _applied(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], **how: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), tools=list(tools) or None, **how)
    except Exception as error:  # a template raises what it likes
        asked = next((m["content"] for m in messages if m["role"] == USER), "")
        raise UserError(
            f"the chat template of the model fails for the messages after {asked[:60]!r}:"
            f" {type(error).__name__}: {error}"
        ) from error


def _encoded(tokenizer: Any, text: str) -> list[int]:
    # The template has written the special tokens, the one that begins a text included.
    return tokenizer.encode(text, add_special_tokens=False)


def _by_marks(
    tokenizer: Any, prompt: Chat, said: Sequence[Message], ends: Collection[int]
) -> Tokens:
    """Returns the tokens that count by the template's own {% generation %} marks."""
    whole = _applied(
        tokenizer,
        (*prompt.messages, *said),
        prompt.tools,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, marks = list(whole["input_ids"]), [bool(x) for x in whole["assistant_masks"]]
    asked = chat_prompt_ids(tokenizer, prompt)
    same = next(
        (n for n, (a, b) in enumerate(zip(asked, ids)) if a != b), min(map(len, (asked, ids)))
    )
    counted = [n for n in range(same, len(ids)) if marks[n]]
    if not counted:
        raise UserError(
            "the {% generation %} marks of the model's chat template hold nothing of the answer to"
            f" {shown(prompt)[:60]!r}"
        )
    first, last = (same if same == len(asked) else counted[0]), counted[-1] + 1
    return Tokens(ids[:first], ids[first:last], marks[first:last])


def _by_prefixes(
    tokenizer: Any, prompt: Chat, said: Sequence[Message], ends: Collection[int]
) -> Tokens:
    """Returns the tokens that count by what the template adds for each message of the assistant."""
    every, before = (*prompt.messages, *said), len(prompt.messages)
    whole = _rendered(tokenizer, every, prompt.tools, start=False)
    spans = []
    for n in range(before, len(every)):
        if every[n]["role"] == ASSISTANT:
            heads = [
                _rendered(tokenizer, every[:n], prompt.tools, start=True),
                _rendered(tokenizer, every[: n + 1], prompt.tools, start=False),
            ]
            if not all(whole.startswith(head) for head in heads):
                raise UserError(
                    f"the model's chat template writes message {n + 1} after {shown(prompt)[:60]!r}"
                    " differently when the conversation continues, so rlkern cannot tell which"
                    " text is the model's; use a template with {% generation %} marks"
                )
            spans.append((len(heads[0]), len(heads[1])))
    borders = [place for span in spans for place in span]
    pieces = _pieces(tokenizer, whole, borders, chat_prompt_ids(tokenizer, prompt))
    ids, counts = list(pieces[0]), list[bool]()
    for n, piece in enumerate(pieces[1 : 2 * len(spans)]):
        own, last = n % 2 == 0, n == 2 * len(spans) - 2
        # What a template writes behind the end of a message is not the model's.
        end = max((k + 1 for k, i in enumerate(piece) if i in ends), default=0) if own else 0
        if own and not end:
            piece = [*piece, tokenizer.eos_token_id] if last else piece
            end = len(piece)
        piece = piece[:end] if last else piece
        ids += piece
        counts += [own and k < end for k in range(len(piece))]
    start = len(pieces[0])
    return Tokens(ids[:start], ids[start:], counts)


def _pieces(tokenizer: Any, text: str, borders: Sequence[int], first: list[int]) -> list[list[int]]:
    """Returns the ids of a text between borders: those of the whole if it begins with the `first`
    and no token lies across a border, and else those of each piece."""
    edges = [0, *borders, len(text)]
    if tokenizer.is_fast:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places, ids = found["offset_mapping"], found["input_ids"]
        across = any(a < border < b for a, b in places for border in borders)
        if not across and ids[: len(first)] == first:
            return [
                [i for i, (place, _) in zip(ids, places) if low <= place < high]
                for low, high in pairwise(edges)
            ]
    return [_encoded(tokenizer, text[low:high]) for low, high in pairwise(edges)]
