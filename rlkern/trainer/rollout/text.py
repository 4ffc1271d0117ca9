# SPDX-License-Identifier: Apache-2.0
"""Between text and rows of tokens.

The one rule: the ids of a prompt and its answer are those of one text. What is sampled keeps its
ids, and is never encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import compress, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import Answer, Chat, Prompt, as_text, shown, shown_answer
from rlkern.trainer.data.render import (
    Tokens,
    chat_prompt_ids,
    chat_tokens,
    is_text,
    no_template,
)
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rows import Rows

# Padding is masked by position, never by its id. Every model has embeddings for this one; for the
# tokenizer's own it need not.
PADDING = 0
Ids = tuple[list[int], list[int]]  # of a prompt, and of an answer to it
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Prompts(NamedTuple):
    """Q prompts as left-padded rows: token (Q, P) int64; mask (Q, P) bool, True is a real token."""

    token: Tensor
    mask: Tensor


def encode(
    policy: Policy, prompts: Sequence[Prompt], *, max_new_tokens: int, keep: int = 0
) -> Prompts:
    """Returns prompts as rows, of each the last `keep` tokens if that is not 0; Raises UserError if
    one leaves no room for its answer."""
    rows = [prompt_ids(policy.tokenizer, prompt)[-keep:] for prompt in prompts]
    context = policy.context
    for prompt, row in zip(prompts, rows, strict=True):
        check_known(policy, row, prompt)
        if len(row) + max_new_tokens > context:
            raise UserError(
                f"a prompt of {len(row)} tokens and {max_new_tokens} new ones do not fit the"
                f" model's context of {context}: {shown(prompt)[:60]!r}"
            )
    return left_padded(policy, rows)


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Returns the ids of a text that goes on: with the special tokens that the tokenizer puts
    before every text, unless it holds them itself, and without those behind; of messages those of
    the rendered template. Raises UserError if there are none."""
    if isinstance(prompt, Chat) and not is_text(tokenizer, prompt):
        return chat_prompt_ids(tokenizer, prompt)
    text = as_text(prompt)
    plain, before = _plain(tokenizer, text), _before(tokenizer)
    # A rendered chat template begins with them already.
    found = plain if plain[: len(before)] == before else before + plain
    if not found:
        raise UserError(f"a prompt must have at least one token, got {text!r}")
    return found


def _plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@lru_cache(maxsize=4)
def _before(tokenizer: Any) -> list[int]:
    """Returns the special tokens that a tokenizer puts before every text."""
    plain, whole = _plain(tokenizer, "a"), tokenizer.encode("a")
    places = range(len(whole) - len(plain) + 1)
    return whole[: next((i for i in places if whole[i : i + len(plain)] == plain), 0)]


def following(tokenizer: Any, before: str, text: str) -> list[int]:
    """Returns the ids of a text behind another one: what the two in one have beyond the first's, so
    that no blank or special token of a beginning is in them."""
    # A line break stands for a text whose last token would be another one with more behind it.
    for known in (before, "\n"):
        own, both = _plain(tokenizer, known), _plain(tokenizer, known + text)
        if own and both[: len(own)] == own:
            return both[len(own) :]
    return _plain(tokenizer, text)


def seam(tokenizer: Any, prompt: str, answers: list[str]) -> tuple[list[int], list[list[int]]]:
    """Returns the ids of a prompt and of given answers to it, which together are those of one text.

    A token across the seam belongs to the answer; the prompt ends before the first one that is in
    any of them.
    """
    asked = prompt_ids(tokenizer, prompt)
    whole = [prompt_ids(tokenizer, prompt + answer) for answer in answers]
    width = min(len(row) for row in (asked, *whole))
    same = [all(row[i] == asked[i] for row in whole) for i in range(width)]
    shared = same.index(False) if False in same else width
    if not shared:  # nothing would be left to ask with
        return asked, [following(tokenizer, prompt, answer) for answer in answers]
    return asked[:shared], [row[shared:] for row in whole]


def check_known(policy: Policy, ids: list[int], prompt: Prompt) -> None:
    """Raises UserError for text that the model has no tokens or no embeddings for."""
    unknown = policy.tokenizer.unk_token_id
    # Some tokenizers, which know every byte, call their end of text unknown too.
    if unknown != policy.tokenizer.eos_token_id and unknown in ids:
        raise UserError(
            f"the model has no token for some of the text {shown(prompt)[:60]!r}; use another"
            " --model, or text in its alphabet"
        )
    any_text(policy, ids, prompt)


def any_text(policy: Policy, ids: list[int], prompt: Prompt) -> None:
    """Raises UserError for text with a token that the model has no embeddings for."""
    rows = policy.model.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        raise UserError(
            f"token {policy.tokenizer.convert_ids_to_tokens(max(ids))!r} has the id {max(ids)}, and"
            f" the model's embeddings have {rows} rows: resize them to the tokenizer"
        )


def left_padded(policy: Policy, rows: list[list[int]]) -> Prompts:
    """Returns rows of token ids as prompts."""
    width = max(map(len, rows))
    token = torch.tensor([[PADDING] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Prompts(token.to(policy.device), mask.to(policy.device))


def end_tokens(policy: Policy) -> set[int]:
    """Returns the ids that are the end of a text: the tokenizer's, and those that the model's
    configuration names."""
    # A reward model, which generates nothing, has no such configuration.
    generation = getattr(policy.model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return {i for i in (policy.tokenizer.eos_token_id, *found) if i is not None}


def stop_tokens(policy: Policy, stop: str) -> Tensor:
    """Returns the ids that end an answer: eos, and every token whose text contains `stop`."""
    ids = end_tokens(policy)
    if stop:
        texts = policy.tokenizer.batch_decode([[i] for i in range(len(policy.tokenizer))])
        ids.update(i for i, text in enumerate(texts) if stop in text)
    return torch.tensor(sorted(ids), device=policy.device)


def texts(policy: Policy, rows: Rows) -> list[str]:
    """Returns all that follows the prompts as text: what rewards and environments read."""
    # Answers of a group are often the same, the more so the shorter they are.
    read = cache(lambda asked, said: text_of(policy, list(asked), list(said)))
    return [read(*map(tuple, pair)) for pair in zip(*token_ids(rows).values(), strict=True)]


def text_of(policy: Policy, asked: list[int], said: list[int]) -> str:
    """Returns the text of tokens behind a prompt.

    Nothing is left out but the tokens that are the end of a text: other special tokens are read as
    their names, ids that the tokenizer does not know as UNKNOWN, and a blank at the seam is kept,
    so that prompt and answer are the text of all tokens.
    """
    tokenizer, ends = policy.tokenizer, end_tokens(policy)
    kept = [i for i in said if i not in ends]
    head, whole = _decoded(tokenizer, asked), _decoded(tokenizer, asked + kept)
    if not whole.startswith(head):  # a character's bytes lie on both sides
        head, whole = "", _decoded(tokenizer, kept)
    text = whole[len(head) :]
    return text if _reads_blanks(tokenizer) else text.removeprefix(" ")


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    known = _known(tokenizer, len(tokenizer))
    runs = [(real, list(some)) for real, some in groupby(ids, known.__contains__)]
    return "".join(tokenizer.decode(x) if real else UNKNOWN * len(x) for real, x in runs)


@lru_cache(maxsize=4)
def _known(tokenizer: Any, size: int) -> frozenset[int]:
    """Returns the ids of a tokenizer of this size, which a vocabulary may have holes between."""
    return frozenset(tokenizer.get_vocab().values())


@lru_cache(maxsize=4)
def _reads_blanks(tokenizer: Any) -> bool:
    """Returns whether tokens hold the blanks between words; else decoding puts some there."""
    return _plain(tokenizer, "1 + 1") != _plain(tokenizer, "1+1")


def token_ids(rows: Rows) -> dict[str, list[list[int]]]:
    """Returns prompt_ids and completion_ids of each answer: the very ones read and written."""
    asked, said = (
        [list(compress(*row)) for row in zip(token.tolist(), real.tolist(), strict=True)]
        for token, real in ((rows.prompt, rows.prompt_mask), (rows.token, rows.present))
    )
    prompts = [ids for ids in asked for _ in range(rows.group_size)]
    return {"prompt_ids": prompts, "completion_ids": said}


def given_tokens(
    policy: Policy, prompt: Prompt | None, answers: Sequence[Answer], *, stop: str
) -> list[Tokens]:
    """Returns given answers to a prompt as tokens, all behind the same ids; without a prompt an
    answer of text goes on from its first token. An answer of text ends with the end-of-text token,
    unless it does so already, or holds the text `stop` that ends one itself."""
    tokenizer = policy.tokenizer
    if isinstance(prompt, Chat) and not is_text(tokenizer, prompt):
        ends = end_tokens(policy)
        return [chat_tokens(tokenizer, prompt, answer, ends) for answer in answers]
    given = [answer for answer in answers if isinstance(answer, str)]
    if len(given) < len(answers):
        raise UserError(no_template(shown(prompt or "")))
    if prompt is None:
        whole = [prompt_ids(tokenizer, answer) for answer in given]
        head, tails = whole[0][:1], [row[1:] for row in whole]
    else:
        head, tails = seam(tokenizer, as_text(prompt), given)
    return [_ended(policy, head, row, answer, stop) for row, answer in zip(tails, given)]


def _ended(policy: Policy, head: list[int], row: list[int], answer: str, stop: str) -> Tokens:
    if not ((stop and stop in answer) or (row and row[-1] in end_tokens(policy))):
        row = [*row, policy.tokenizer.eos_token_id]
    return Tokens(head, row, [True] * len(row))


def given_rows(
    policy: Policy,
    prompts: Sequence[Prompt | None],
    answers: Sequence[Answer],
    *,
    stop: str,
    keep: int = 0,
    ids: Sequence[Ids | None] = (),
    check: Callable[[Policy, list[int], str], None] = check_known,
) -> Rows:
    """Returns given answers as rows, len(answers) / len(prompts) consecutive ones to each prompt,
    of which the last `keep` tokens are kept if that is not 0.

    ids are the tokens of the prompt of each answer, and its own, where they are known: those are
    taken, not the texts'. check(policy, ids, text) raises UserError for text that is no answer; of
    a text that a model wrote any is one. What others say between messages does not count.
    """
    group, asked, given = len(answers) // len(prompts), list[list[int]](), list[Tokens]()
    for place, prompt in enumerate(prompts):
        some = slice(place * group, (place + 1) * group)
        known = [
            _ended(policy, *own, shown_answer(answer), stop)
            for own, answer in zip(ids[some], answers[some])
            if own is not None
        ]
        found = known or given_tokens(policy, prompt, answers[some], stop=stop)
        head, text = found[0].prompt[-keep:], shown(prompt or "")
        asked.append(head)
        given += found
        for answer, each in zip(answers[some], found, strict=True):
            said = text + shown_answer(answer)
            (any_text if known else check)(policy, head + each.answer, said)
            _check_room(policy, head, each.answer, text)
    width = max(len(each.answer) for each in given)

    def padded(rows: list[list]) -> Tensor:
        return torch.tensor([row + [PADDING] * (width - len(row)) for row in rows])

    token = padded([each.answer for each in given]).to(policy.device)
    present = padded([[1] * len(each.answer) for each in given]).bool().to(policy.device)
    mask = padded([each.counts for each in given]).bool().to(policy.device)
    head_token, head_mask = left_padded(policy, asked)
    return Rows(
        prompt=head_token,
        prompt_mask=head_mask,
        token=token,
        mask=mask,
        present=present,
        rollout_logprob=torch.zeros_like(token).float(),
    )


def _check_room(policy: Policy, asked: list[int], row: list[int], prompt: str) -> None:
    if len(asked) + len(row) > policy.context:
        raise UserError(
            f"a prompt of {len(asked)} tokens and an answer of {len(row)} do not fit the model's"
            f" context of {policy.context}: {prompt[:60]!r}"
        )
