# SPDX-License-Identifier: Apache-2.0
"""One answer, token by token: for a person who reads while the model writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.drawing import draw
from rlkern.trainer.rollout.reading import Reading
from rlkern.trainer.rollout.sampler import Sampling, check_finite, next_logprob
from rlkern.trainer.rollout.text import UNKNOWN, left_padded, text_of


@torch.no_grad()
def stream(
    policy: Policy, asked: list[int], sampling: Sampling, uniform: Tensor | None
) -> Iterator[int]:
    """Yields the tokens of an answer to the ids of a prompt, each once it is drawn: those that a
    rollout draws by the same numbers.

    uniform  (T,) float64 in [0, 1), as a row of sample; None at temperature 0
    """
    reading = Reading(policy.model, policy.passes, len(asked) + sampling.max_new_tokens - 1)
    token, seen = left_padded(policy, [asked])
    for step in range(sampling.max_new_tokens):
        # Entered anew for each token: in between somebody else's code runs.
        with policy.precision(sampling=True):
            logits = reading.read(token, seen) if step else reading.begin(token, seen, 1)
            logprob = next_logprob(logits, sampling)
        check_finite(policy, logprob, step)
        drawn = draw(logprob, None if uniform is None else uniform[step : step + 1])
        yield int(drawn)
        if torch.isin(drawn, sampling.stop).any():
            return
        token, seen = drawn[:, None], torch.cat([seen, seen.new_ones(1, 1)], 1)


def pieces_of_text(policy: Policy, asked: list[int], tokens: Iterable[int]) -> Iterator[str]:
    """Yields the text of tokens behind a prompt as it grows; joined it is that of all of them.

    A character whose bytes are not all there yet waits for the rest.
    """
    said, shown, text = list[int](), "", ""
    for token in tokens:
        said.append(token)
        text = text_of(policy, asked, said)
        if text.endswith(UNKNOWN) or not text.startswith(shown):
            continue
        yield text[len(shown) :]
        shown = text
    if text.startswith(shown):
        yield text[len(shown) :]
