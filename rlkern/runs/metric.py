# SPDX-License-Identifier: Apache-2.0
"""What the table of metrics says of each."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A key of metrics.jsonl.

    key      {name} in it stands for any word, such as that of a reward function
    meaning  what it is, with its unit
    label    what the terminal calls it; empty if it is not shown there
    form     format of its number on the terminal
    line     whether a plain line shows it too, not only the live panel
    panel    title of the plot that it is drawn in; empty if it is not drawn
    curve    its label in that plot, and its color there
    healthy  where it lies in runs that learned; a run outside is not wrong, but worth a look
    watch    which algorithms' pages list it: a name of rlkern.compare.guide.AUDIENCES
    """

    key: str
    meaning: str
    label: str = ""
    form: str = "{:.3f}"
    line: bool = True
    panel: str = ""
    curve: str = ""
    color: str = "blue"
    healthy: str = ""
    watch: str = ""

    @property
    def pattern(self) -> re.Pattern[str]:
        """What matches the key."""
        return re.compile(re.sub(r"\\\{\w+\\\}", r"([^/]+)", re.escape(self.key)))
