# SPDX-License-Identifier: Apache-2.0
"""The textbook's environments that gymnasium lacks, registered under their names."""

from __future__ import annotations

import gymnasium

_HERE = "rlkern.control.worlds"

for _name, _entry, _options in (
    ("RandomWalk5-v0", "random_walk:RandomWalk", {"states": 5}),
    ("RandomWalk19-v0", "random_walk:RandomWalk", {"states": 19, "left_reward": -1.0}),
    ("WindyGridworld-v0", "windy_gridworld:WindyGridworld", {}),
):
    gymnasium.register(_name, f"{_HERE}.{_entry}", kwargs=_options)
