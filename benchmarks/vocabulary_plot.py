# SPDX-License-Identifier: Apache-2.0
"""The plot of docs/benchmarks.md."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import report
from rlkern.runs.plot import BLUE, GREY, ORANGE, RED, plain, save_png


def draw(times: report.Times, groups: Sequence[tuple[int, int, str, str]], path: Path) -> None:
    """Draws loss and gradient against the vocabulary: milliseconds for a GB of logits, so that
    sizes compare; groups are (V, N, dtype, name of the group)."""
    figure = Figure(figsize=(7.5, 3.8), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rows = {
        "eager": ("eager", RED), "torch.compile": ("torch_compile", ORANGE),
        "rlkern, in place": ("rlkern_in_place", BLUE),
        "copying the logits": ("memcpy_of_the_logits", GREY),
    }  # fmt: skip
    for label, (row, color) in rows.items():
        points = [
            (v, times[group][row].median / (n * v * 2e-9))
            for v, n, _, group in groups
            if row in times[group] and v >= 1000
        ]
        if points:
            axes.plot(*zip(*points), "o-", color=color, markersize=4, linewidth=1.7, label=label)
    axes.set(xscale="log", yscale="log")
    axes.set_title("GRPO, loss and gradient: ms for a GB of bfloat16 logits", fontsize=10,
                   loc="left")  # fmt: skip
    axes.set_xlabel("vocabulary", fontsize=9)
    axes.legend(fontsize=9, frameon=False)
    plain(axes)
    save_png(figure, path)
