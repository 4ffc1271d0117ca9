# SPDX-License-Identifier: Apache-2.0
"""Double DQN: the network chooses the next action, the target network says what it is worth.

    y = r + γ·Q⁻(s', argmax_a' Q(s', a'))

Paper: arXiv 1509.06461, eq. 4. The maximum of noisy values is too large on average; a second
network's value of the chosen action is not. The rest is DQN.

>>> import torch, rlkern
>>> q, target, online = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]), torch.eye(1, 2)
>>> ended = torch.tensor([False])
>>> out = rlkern.td_loss(q, torch.tensor([1]), torch.tensor([0.5]), ended, target, discount=0.5,
...                      bootstrap="double", online_next_q=online)
>>> out.error.tolist()                                  # action 0 is chosen: 0.5 + 0.5·0 − 2
[-1.5]
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlkern.control.algorithms.dqn import DQN, QUICK, RECIPES, DQNSettings
from rlkern.control.declaration import BOX, DISCRETE, ControlAlgorithm


class DoubleDQN(DQN):
    """DQN with another bootstrap."""

    def bootstrap(self, following: Tensor) -> dict[str, Any]:
        """Returns what the library's td_loss needs for the value of the next states."""
        online = self.q(following)
        return {"bootstrap": "double", "next_q": self.target(following), "online_next_q": online}


ALGORITHM = ControlAlgorithm(
    name="double_dqn",
    paper="arXiv 1509.06461, eq. 4",
    learns="value",
    on_policy=False,
    observations=BOX,
    actions=(DISCRETE,),
    settings=DQNSettings,
    learner=DoubleDQN,
    recipes=RECIPES,
    quick=QUICK,
)
