# SPDX-License-Identifier: Apache-2.0
"""A judge of two answers as a reward: the win rate of each answer against the others to its prompt.

from rlkern.trainer.reward.pairwise import win_rate_of

def shorter(prompt, a, b):
    return float(len(a) < len(b))

judge = win_rate_of(shorter)            # --reward my_rewards:judge
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

from rlkern.trainer.reward.asking import compares, reward_name
from rlkern.trainer.reward.functions import RewardFunction
from rlkern.trainer.reward.signatures import reads_text

# The chance that answer a to a prompt beats answer b: 1, 0, ½ for a tie, or None if it cannot tell.
Judge = Callable[[str, str, str], "float | None"]
# Of an answer that there is nothing to compare with.
NEUTRAL = 0.5


def win_rate_of(judge: Judge) -> RewardFunction:
    """Returns the reward function f(prompts, completions) of a judge of two answers.

    The reward of an answer is the mean over the other answers to its prompt of how surely it beats
    them; pairs that the judge cannot tell are left out. It is None if all of an answer's pairs are,
    and ½ for the only answer to a prompt. A judge is asked about each pair once, the earlier answer
    first, and its word counts for both; one that favours a place has to ask in both orders itself.

    >>> longer = win_rate_of(lambda prompt, a, b: float(len(a) > len(b)))
    >>> longer(["p", "p", "p", "q"], ["a", "aaa", "aa", "a"])
    [0.0, 1.0, 0.5, 0.5]
    """

    @reads_text
    @compares
    def win_rate(prompts: list[str], completions: list[str]) -> list[float | None]:
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(prompt, []).append(place)
        won: list[list[float]] = [[] for _ in prompts]
        for prompt, same in places.items():
            for first, second in combinations(same, 2):
                chance = _chance(judge(prompt, completions[first], completions[second]))
                if chance is not None:
                    won[first].append(chance)
                    won[second].append(1 - chance)
        alone = [len(places[prompt]) == 1 for prompt in prompts]
        return [
            NEUTRAL if only else math.fsum(own) / len(own) if own else None
            for only, own in zip(alone, won)
        ]

    win_rate.__name__ = reward_name(judge)
    return win_rate


def _chance(value: float | None) -> float | None:
    if value is None or 0 <= value <= 1:
        return value
    raise ValueError(
        f"a judge of two answers must return a number from 0 to 1 or None, got {value!r}"
    )
