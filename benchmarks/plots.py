# SPDX-License-Identifier: Apache-2.0
"""The plots of docs/benchmarks.md, each as a light and a dark picture that a phone can show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks import report
from benchmarks.tables import IN_PLACE, MEMCPY, policy_groups
from rlkern.runs.plot import save_png

MAIN = "policy_loss 512x151936 bfloat16"
Curves = dict[str, list[tuple[float, float]]]
# A phone shows 700 pixels at half the size.
SIZE, DPI, FONT = (7.0, 4.4), 100, 14


class Theme(NamedTuple):
    """The colours of a page."""

    name: str
    page: str
    ink: str
    colors: tuple[str, ...]

    def color_of(self, names: Sequence[str]) -> dict[str, str]:
        """Returns a colour for each name; Raises ValueError if there are not enough."""
        if len(names) > len(self.colors):
            raise ValueError(f"a plot has {len(self.colors)} colours, got {', '.join(names)}")
        return dict(zip(names, self.colors))


LIGHT = Theme(
    "light", "#ffffff", "#24292f",
    ("#2f6fb0", "#b8433f", "#d9822b", "#8a8f98", "#3a8f5c", "#8256b0"),
)  # fmt: skip
DARK = Theme(
    "dark", "#0d1117", "#d5dbe2",
    ("#6cb0f5", "#f0837d", "#f0b060", "#9aa4af", "#74c69d", "#b797e8"),
)  # fmt: skip


class Plot(NamedTuple):
    """A plot: its file's name, what it shows in words, and what draws it."""

    name: str
    words: str
    draw: Callable[[Any, Theme], None]

    def write(self, folder: Path) -> None:
        """Writes both pictures."""
        folder.mkdir(exist_ok=True)
        for theme in (LIGHT, DARK):
            figure = Figure(
                figsize=SIZE, dpi=DPI, layout="constrained", facecolor=theme.page
            )  # fmt: skip
            FigureCanvasAgg(figure)
            axes = figure.subplots()
            axes.set_facecolor(theme.page)
            self.draw(axes, theme)
            _dress(axes, theme)
            save_png(figure, folder / f"{self.name}-{theme.name}.png")

    def markup(self, folder: str) -> str:
        """Returns the line that shows the picture that suits the page.

        >>> Plot("x", "words", print).markup("a").count("a/x-")
        2
        """
        light, dark = (f"{folder}/{self.name}-{theme.name}.png" for theme in (LIGHT, DARK))
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        return f'<picture>{source}<img alt="{self.words}" src="{light}"></picture>'


def _dress(axes: Any, theme: Theme) -> None:
    axes.grid(alpha=0.25, linewidth=0.6, color=theme.ink)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(theme.ink)
    axes.tick_params(which="both", labelsize=FONT - 1, colors=theme.ink)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label, axes._left_title):
        text.set(color=theme.ink, fontsize=FONT)
    legend = axes.get_legend()
    if legend is not None:
        legend.get_frame().set_visible(False)
        for text in legend.get_texts():
            text.set(color=theme.ink, fontsize=FONT - 1)


def lines(name: str, title: str, x_label: str, curves: Curves) -> Plot:
    """Returns a plot of curves by name, both axes logarithmic; the first is rlkern's."""

    def draw(axes: Any, theme: Theme) -> None:
        color = theme.color_of(list(curves))
        for name, points in curves.items():
            axes.plot(*zip(*points), "o-", color=color[name], ms=6, linewidth=2.4, label=name)
        axes.set(xscale="log", yscale="log", xlabel=x_label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        ticks = sorted({x for points in curves.values() for x, _ in points})
        if len(ticks) <= 6:
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
            axes.set_xticks([], minor=True)
        axes.set_title(title, loc="left")
        axes.legend()

    return Plot(name, title, draw)


def bars(
    name: str,
    title: str,
    x_label: str,
    stacks: Sequence[tuple[str, dict[str, float]]],
    known: Sequence[str] = (),
) -> Plot:
    """Returns a plot of stacked bars: (what a bar is of, {part: length}); parts keep a colour, the
    known ones that of their place whatever is drawn."""
    parts = list(dict.fromkeys([*known, *(part for _, stack in stacks for part in stack)]))

    def draw(axes: Any, theme: Theme) -> None:
        places = list(range(len(stacks)))[::-1]
        begins = [0.0] * len(stacks)
        for part, color in theme.color_of(parts).items():
            widths = [stack.get(part, 0.0) for _, stack in stacks]
            axes.barh(places, widths, 0.6, left=begins, color=color, label=part)
            begins = [begin + width for begin, width in zip(begins, widths)]
        axes.set_yticks(places, [label for label, _ in stacks])
        axes.set_xlabel(x_label)
        axes.set_title(title, loc="left")
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=2)

    return Plot(name, title, draw)


def by_vocabulary(times: report.Times) -> list[Plot]:
    """Returns loss and gradient against the vocabulary, in milliseconds for a GB of logits, so that
    sizes compare; nothing without rows."""
    rows = {"rlkern, in place": IN_PLACE, "eager": "eager", "torch.compile": "torch_compile",
            "copying the logits": MEMCPY}  # fmt: skip
    groups = [g for g in policy_groups(times) if g[2] == "bfloat16" and g[0] >= 1000]
    curves = {
        label: [(v, times[g][row].median / (n * v * 2e-9)) for v, n, _, g in groups
                if row in times[g]]
        for label, row in rows.items()
    }  # fmt: skip
    return _drawn("vocabulary", "Loss and gradient: ms for a GB of bfloat16 logits", "vocabulary",
                  curves)  # fmt: skip


def by_tokens(times: report.Times) -> list[Plot]:
    """Returns the loss from hidden states against tokens; nothing without rows."""
    rows = {"rlkern": "rlkern", "eager": "eager", "torch.compile": "torch_compile"}
    curves: Curves = {label: [] for label in rows}
    for group in times:
        words = group.split()
        if words[0] == "linear_policy_loss" and words[-1] == "float32":
            tokens = int(words[1].split("x")[0])
            for label, row in rows.items():
                if row in times[group]:
                    curves[label].append((tokens, times[group][row].median))
    return _drawn("tokens", "Loss from hidden states and gradients: ms, float32", "tokens", curves)


def by_memory(records: list[dict]) -> list[Plot]:
    """Returns the peak memory of the loss against tokens; nothing without rows."""
    curves: Curves = {}
    for record in sorted(records, key=lambda x: (x["row"] != "rlkern", x["row"], x["tokens"])):
        point = (record["tokens"], record["extra_mib"])
        curves.setdefault(record["row"].replace("_", " "), []).append(point)
    return _drawn("memory", "Peak memory beside weights and gradients: MiB", "tokens", curves)


# {what is computed: (its group, row of rlkern, how the rows of others end)}
ROOFS = {
    "loss, gradient": (MAIN, IN_PLACE, ""),
    "log-prob, entropy": (MAIN, "rlkern_logprob_and_entropy", "_logprob_and_entropy"),
    "GSPO, gradient": (MAIN, "rlkern_gspo_in_place", "_gspo"),
    "from hidden states": ("linear_policy_loss 512x896x151936 float32", "rlkern", ""),
    "GAE": ("gae 8192x1024", "rlkern_gae", "_gae"),
}  # fmt: skip
OTHERS = {"eager": "eager", "torch.compile": "torch_compile"}


def by_ceiling(times: report.Times) -> list[Plot]:
    """Returns what share of the rate of a copy, or of the matrix products alone, rlkern reaches and
    below it the faster of the others; nothing without rows."""
    stacks = list[tuple[str, dict[str, float]]]()
    for what, (group, ours, end) in ROOFS.items():
        rows = times.get(group, {})
        best = report.ceiling(rows)
        if best is None or not rows[best].rate:
            continue
        share = {who: 100 * rows[begin + end].rate / rows[best].rate
                 for who, begin in OTHERS.items() if begin + end in rows}  # fmt: skip
        if ours in rows:
            stacks.append((what, {"rlkern": 100 * rows[ours].rate / rows[best].rate}))
        if share:
            faster = max(share, key=lambda who: share[who])
            stacks.append(("", {faster: share[faster]}))
    title = "Share of what a copy or the products alone reach"
    return [bars("ceiling", title, "%", stacks, ("rlkern", *OTHERS))] if stacks else []


def _drawn(name: str, title: str, x_label: str, curves: Curves) -> list[Plot]:
    kept = {label: sorted(points) for label, points in curves.items() if len(points) > 1}
    return [lines(name, title, x_label, kept)] if kept else []
