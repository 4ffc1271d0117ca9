# SPDX-License-Identifier: Apache-2.0
"""Policies whose values are predicted, as probabilities (S, A) of the actions in each state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gymnasium import spaces

from rlkern.control.environments import Environments, flat_size
from rlkern.runs.errors import UserError


def uniform(states: int, actions: int) -> np.ndarray:
    """Returns equal probabilities.

    >>> uniform(1, 4).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    return np.full((states, actions), 1.0 / actions)


def stick_on_20(cards: spaces.Space) -> np.ndarray:
    """Returns the policy of Blackjack that takes a card (action 1) below 20, and none from 20 on;
    a state is (the player's sum, the dealer's card, a usable ace). Sutton & Barto, example 5.1.

    >>> from gymnasium.spaces import Discrete, Tuple
    >>> from rlkern.control.environments import flat_index
    >>> cards = Tuple([Discrete(32), Discrete(11), Discrete(2)])
    >>> stick_on_20(cards)[[flat_index(cards, (n, 10, 0)) for n in (19, 20)]].tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    assert isinstance(cards, spaces.Tuple)
    totals, rest = flat_size(cards.spaces[0]) or 0, flat_size(spaces.Tuple(cards.spaces[1:])) or 0
    hit = np.repeat(np.arange(totals) < 20, rest)
    return np.stack([~hit, hit], -1).astype(float)


# By the class of an environment: the policies that are known for it, of its observations.
OFFERED: dict[str, dict[str, Callable[[spaces.Space], np.ndarray]]] = {
    "BlackjackEnv": {"stick_on_20": stick_on_20},
}


def probabilities(name: str, environments: Environments) -> np.ndarray:
    """Returns a policy by its name; Raises UserError, naming those that there are."""
    kind = type(environments.copies[0].unwrapped).__name__
    offered = OFFERED.get(kind, {})
    if name in offered:
        return offered[name](environments.observations)
    if name != uniform.__name__:
        known = ", ".join([uniform.__name__, *offered])
        raise UserError(f"policy must be one of {known} for {environments.name}, got {name!r}")
    assert environments.states is not None and isinstance(environments.actions, spaces.Discrete)
    return uniform(environments.states, int(environments.actions.n))
