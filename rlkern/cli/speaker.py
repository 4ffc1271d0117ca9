# SPDX-License-Identifier: Apache-2.0
"""The model of a run, or any model, as `rlkern sample` and `rlkern chat` let it speak."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from rlkern.cli.flags import add_settings
from rlkern.cli.guard import warn
from rlkern.cli.parser import Parser
from rlkern.runs.errors import UserError
from rlkern.runs.settings.group import Group
from rlkern.runs.settings.layers import Layer, given_of, normalized
from rlkern.runs.settings.message import first_problem
from rlkern.runs.settings.types import Count, NotNegative, PositiveShare, Seed, Whole

if TYPE_CHECKING:
    import torch

    from rlkern.cli.target import Target
    from rlkern.trainer.data.chat import Message, Prompt
    from rlkern.trainer.models.policy import Policy
    from rlkern.trainer.rollout.sampler import Sampling
    from rlkern.trainer.settings import Settings

# Tokens of an answer of a model that belongs to no run.
_NEW_TOKENS = 256
_TITLE = "the answers (null takes the run's own, and for a model of no run what is in brackets)"
# Lower temperatures overflow float32 logits.
_LEAST = 1e-4
# Characters of a prompt that a model is tried with.
_FEW = 64


class Speech(Group):
    """How a model is asked and its answers are drawn; null is the run's own, and of a model that
    belongs to no run what stands in the help."""

    system: str | None = None
    """System message, in place of data.system; an empty one is none."""
    temperature: NotNegative | None = None
    """Sampling temperature (1); 0 takes the likeliest token."""
    top_k: Whole | None = None
    """Sample among the k likeliest tokens (0); 0 among all."""
    top_p: PositiveShare | None = None
    """Sample among the likeliest tokens of this total probability (1)."""
    max_new_tokens: Count | None = None
    """Longest answer in tokens (256)."""
    seed: Seed = 0
    """Seed of the sampler."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Where the model runs (auto)."""
    dtype: Literal["float32", "bfloat16", "mixed"] | None = None
    """Number type of the weights and the products (float32)."""


def add_speech(parser: Parser) -> None:
    """Adds the flags of Speech, and that of the checkpoint."""
    says = "of a run: best, newest or a step (default best)"
    parser.add_argument("--checkpoint", metavar="X", help=says)
    add_settings(parser, Speech, title=_TITLE)


def speech_of(flags: dict[str, Any]) -> Speech:
    """Returns the flags that add_speech added, checked; Raises UserError for a wrong value."""
    own = {name: flags[name] for name in Speech.model_fields if name in flags}
    try:
        found = Speech(**given_of(Speech, normalized(Speech, Layer("flags", own))))
    except ValidationError as error:
        sentence = first_problem(error, Speech, Speech.model_fields)[1]
        raise UserError(f"flags: {sentence}") from None
    if found.temperature is not None and 0 < found.temperature < _LEAST:
        raise UserError(f"temperature must be 0, or at least 1e-4, got {found.temperature}")
    if found.temperature == 0 and (found.top_k or found.top_p):
        raise UserError(
            "top_k and top_p need a temperature above 0, because temperature 0 does not sample"
        )
    return found


@dataclasses.dataclass
class Speaker:
    """A model that answers: its weights, how a run asks it, and how its answers are drawn.

    tokens and ended are of the last answer: how many there were, and whether it ended by itself.
    """

    policy: Policy
    settings: Settings
    of_run: bool
    label: str
    sampling: Sampling
    speech: Speech
    generator: torch.Generator
    tokens: int = 0
    ended: bool = False
    checked: bool = False

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.policy.tokenizer.chat_template)

    def under_system(self, said: list[Message]) -> tuple[Message, ...]:
        """Returns messages under the system's, if there is one."""
        from rlkern.trainer.data.chat import SYSTEM

        asked = self.speech.system
        system = self.settings.data.system if asked is None else asked
        return (*([{"role": SYSTEM, "content": system}] if system else []), *said)

    def prompt(self, text: str, *, plain: bool) -> Prompt:
        """Returns what the model goes on with, as its run put it: a user's message in the chat
        template, data.template around the text, or the text; the text if `plain`."""
        from rlkern.trainer.data.chat import USER, Chat

        data, system = self.settings.data, self.speech.system
        if system and not self.has_template:
            raise UserError(f"system needs a chat template, which {self.label} has not")
        if system and plain:
            raise UserError("system is a message, and with --plain there is none: leave one out")
        if plain or not self.has_template:
            return text if plain else _filled(data.template, text)
        # A task's prompts are text, whatever the tokenizer has.
        of_text = data.train is None if self.of_run else False
        if not system and (of_text or data.chat is False or data.template is not None):
            return _filled(data.template if data.train is not None else None, text)
        return Chat(self.under_system([{"role": USER, "content": text}]))

    def answer(self, prompt: Prompt) -> Iterator[str]:
        """Yields the text of an answer as it is drawn."""
        from rlkern.trainer.data.chat import shown
        from rlkern.trainer.rollout.check import check_model
        from rlkern.trainer.rollout.sampler import random_numbers
        from rlkern.trainer.rollout.stream import pieces_of_text, stream
        from rlkern.trainer.rollout.text import check_known, prompt_ids

        asked = prompt_ids(self.policy.tokenizer, prompt)
        check_known(self.policy, asked, shown(prompt))
        sampling = self._fitting(len(asked))
        if not self.checked:  # chooses how the model is run, a few tokens of any text are enough
            check_model(self.policy, [shown(prompt)[:_FEW]], self.settings, warn)
            self.checked = True
        uniform = None
        if sampling.temperature > 0:
            uniform = random_numbers(self.generator, 1, sampling)[0]
        self.tokens, self.ended = 0, False
        ends = set(sampling.stop.tolist())

        def counted() -> Iterator[int]:
            for token in stream(self.policy, asked, sampling, uniform):
                self.tokens, self.ended = self.tokens + 1, token in ends
                yield token

        return pieces_of_text(self.policy, asked, counted())

    def _fitting(self, asked: int) -> Sampling:
        """Returns how an answer to so many tokens is drawn, no longer than the context; Raises
        UserError if there is no room, or less than was asked for."""
        context, new = self.policy.context, self.sampling.max_new_tokens
        room = context - asked
        if room < 1 or (self.speech.max_new_tokens is not None and new > room):
            raise UserError(
                f"a prompt of {asked} tokens and {new} new ones do not fit the model's context of"
                f" {context}; shorten it, or lower --max_new_tokens"
            )
        return dataclasses.replace(self.sampling, max_new_tokens=min(new, room))


def _filled(template: str | None, text: str) -> str:
    """Returns the text in the one field of a template; Raises UserError for several fields.

    >>> _filled("Q: {question} A:", "1 + 1?"), _filled(None, "1 + 1?")
    ('Q: 1 + 1? A:', '1 + 1?')
    """
    if template is None:
        return text
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    if len(set(names)) != 1:
        raise UserError(
            f"the prompt can only fill a data.template of one column, and that of the run is"
            f" {template!r}; give the whole text with --plain"
        )
    return template.format(**{names[0]: text})


def make_speaker(target: Target, speech: Speech) -> Speaker:
    """Returns the model of a target, ready to speak."""
    import torch

    from rlkern.runs.device import resolve_device
    from rlkern.trainer.models.load import check_model_name, make_policy
    from rlkern.trainer.settings import Settings

    settings = target.settings or Settings()
    if target.model == "tiny":
        raise UserError("tiny is made for the characters of a run: name a run, or another model")
    check_model_name(target.model)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    policy = make_policy(
        target.model,
        alphabet="",
        seed=0,
        device=resolve_device(speech.device or settings.device),
        dtype=speech.dtype or settings.dtype,
    )
    policy.model.requires_grad_(False)
    return Speaker(
        policy=policy,
        settings=settings,
        of_run=target.settings is not None,
        label=target.label,
        sampling=_sampling(policy, settings, speech, of_run=target.settings is not None),
        speech=speech,
        generator=torch.Generator().manual_seed(speech.seed),
    )


def _sampling(policy: Policy, settings: Settings, speech: Speech, *, of_run: bool) -> Sampling:
    """Returns how answers are drawn: as in the run's rollouts but for what was asked."""
    from rlkern.trainer.rollout.sampler import Sampling
    from rlkern.trainer.rollout.text import stop_tokens
    from rlkern.trainer.tasks.registry import make_task

    stop, new = settings.data.stop, settings.rollout.max_new_tokens or _NEW_TOKENS
    if of_run and settings.data.train is None:
        task = make_task(settings)
        stop, new = task.stop, settings.rollout.max_new_tokens or task.max_new_tokens
    given = {
        name: value
        for name in ("temperature", "top_k", "top_p")
        if (value := getattr(speech, name)) is not None
    }
    rollout = settings.rollout
    kept = {"temperature": rollout.temperature, "top_k": rollout.top_k, "top_p": rollout.top_p}
    return Sampling(
        max_new_tokens=speech.max_new_tokens or new,
        stop=stop_tokens(policy, stop),
        **{**kept, **given},
    )
