# SPDX-License-Identifier: Apache-2.0
"""curves.png and the other pictures of a control run."""

from __future__ import annotations

from pathlib import Path

from rlkern.control.learner import Learner
from rlkern.control.metrics import METRICS
from rlkern.runs.logs import read_metrics
from rlkern.runs.plot import draw_page, metric_panel


def draw(run: Path, learner: Learner, summary: dict) -> None:
    """Draw curves.png, and what the learner itself has to show, into a run's folder."""
    lines = read_metrics(run)
    titles = dict.fromkeys(each.panel for each in METRICS if each.panel)
    panels = [metric_panel(title, METRICS, lines) for title in titles]
    title = f"{run.name}: {summary['algorithm']}, {summary['env']}, seed {summary['seed']}"
    shown = [panel for panel in panels if panel is not None]
    draw_page(shown, lines, run / "curves.png", title=title, x_label="environment step")
    learner.draw(run)
