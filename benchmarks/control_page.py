# SPDX-License-Identifier: Apache-2.0
"""docs/control.md and its curves, from the runs on record."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.control_runs import Pairs, Planned
from rlkern.compare.markdown import table
from rlkern.control.algorithms import algorithms
from rlkern.runs.plot import BLUE, GREEN, GREY, ORANGE, RED, plain, save_png

DOCS = Path(__file__).resolve().parents[1] / "docs"
_COLORS = (BLUE, ORANGE, GREEN, RED, GREY, "#7a5ba6", "#2a9d9d")
_BEGIN, _END = "<!-- measured: python -m benchmarks.control -->", "<!-- end of measured -->"


def write(pairs: Pairs) -> None:
    """Writes the measured part of docs/control.md, what stands around it stays, and a plot of the
    curves for each environment."""
    path = DOCS / "control.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    body = "\n\n".join([_results(pairs), *_figures(pairs), _families(pairs), *_peers()])
    path.write_text(f"{before}{_BEGIN}\n\n{body}\n\n{_END}{after}", encoding="utf-8")


def _by_run(pairs: Pairs) -> dict[tuple[str, str], list[tuple[Planned, dict[str, Any] | None]]]:
    found: dict[tuple[str, str], list] = {}
    for run, record in pairs:
        found.setdefault((run.algorithm, run.env), []).append((run, record))
    return found


def _results(pairs: Pairs) -> str:
    rows = []
    for (algorithm, env), each in _by_run(pairs).items():
        made = [record for _, record in each if record is not None]
        least = each[0][0].at_least
        if not made:
            rows.append((algorithm, env, f"{least:g}", "not run", "", "", "", ""))
            continue
        finals = [record["return"] for record in made]
        reached = sum(final >= least for final in finals)
        seconds = statistics.median(record["wall_seconds"] for record in made)
        rows.append((
            algorithm, env, f"{least:g}", f"{reached} of {len(made)}",
            f"{statistics.median(finals):.1f}", f"{min(finals):.1f}",
            f"{statistics.median(record['best_return'] for record in made):.1f}",
            f"{made[0]['steps']:,} in {seconds:.0f} s",
        ))  # fmt: skip
    head = ("algorithm", "environment", "at least", "seeds that reach it", "median return",
            "lowest", "best on the way", "steps")  # fmt: skip
    return table(head, rows)


def _figures(pairs: Pairs) -> list[str]:
    """Returns a line of Markdown for the plot of each environment."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder, lines = DOCS / "control", []
    folder.mkdir(exist_ok=True)
    for env in dict.fromkeys(run.env for run, _ in pairs):
        curves: dict[str, list[list[list[float]]]] = {}
        for run, record in pairs:
            if run.env == env and record is not None:
                curves.setdefault(run.algorithm, []).append(record["curve"])
        if not curves:
            continue
        figure = Figure(figsize=(7.5, 3.6), layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for (name, seeds), color in zip(curves.items(), _COLORS):
            for curve in seeds:
                axes.plot(*zip(*curve), color=color, alpha=0.25, linewidth=0.9)
            points = min(map(len, seeds))
            steps = [point[0] for point in seeds[0][:points]]
            middle = [statistics.median(c[i][1] for c in seeds) for i in range(points)]
            axes.plot(steps, middle, color=color, linewidth=1.9, label=name)
        axes.set_title(f"{env}: return of evaluation episodes, median of the seeds", fontsize=10,
                       loc="left")  # fmt: skip
        axes.set_xlabel("environment step", fontsize=9)
        axes.legend(fontsize=9, frameon=False)
        plain(axes)
        name = f"{env.lower()}.png"
        save_png(figure, folder / name)
        lines.append(f"![{env}](control/{name})")
    return lines


def _families(pairs: Pairs) -> str:
    """Returns the table value or policy × on or off policy, with the best median of each
    algorithm's environments."""
    runs = _by_run(pairs)
    rows = []
    for name, each in algorithms().items():
        shown = []
        for (algorithm, env), made in runs.items():
            finals = [record["return"] for _, record in made if record is not None]
            if algorithm == name and finals:
                shown.append(f"{env} {statistics.median(finals):.1f}")
        rows.append((name, each.learns, "on policy" if each.on_policy else "off policy",
                     each.observations, ", ".join(each.actions), "; ".join(shown)))  # fmt: skip
    rows.sort(key=lambda row: (row[1], row[2], row[0]))
    head = ("algorithm", "learns", "from whose actions", "states", "actions", "median return")
    return table(head, rows)


def _peers() -> list[str]:
    """Returns the speed beside Stable-Baselines3, the last line of each algorithm."""
    path = Path(__file__).parent / "results/control/peers.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not lines:
        return []
    newest = {line["algorithm"]: line for line in lines}
    rows = [
        (name, each["env"], f"{each['rlkern_steps_a_second']:,.0f}",
         f"{each['sb3_steps_a_second']:,.0f}", f"{each['ratio']:.2f}",
         f"{each['rlkern_return']:.1f}", f"{each['sb3_return']:.1f}",
         f"{each['share']:.0%} of the steps, {len(each['seeds'])} seed(s)")
        for name, each in newest.items()
    ]  # fmt: skip
    others = [name for name, each in newest.items() if each.get("starts") != "the same"]
    where = "the same states on both sides"
    if others:
        which = "" if len(others) == len(newest) else f" for {', '.join(others)}"
        where = f"other states on each side{which}"
    head = ("algorithm", "environment", "rlkern, steps/s", "Stable-Baselines3", "ratio",
            "return of rlkern", "of Stable-Baselines3", "what ran")  # fmt: skip
    text = (
        "Beside Stable-Baselines3 with the same settings, one thread each"
        " (`python -m benchmarks.control_peers`, lines of"
        " `benchmarks/results/control/peers.jsonl`); a part of the steps compares the speed, and no"
        " returns. Speed is by processor time, in turns of a second, on a machine that had other"
        " work, too. The 20 episodes that a return is the mean"
        f" of begin in {where}:"
    )
    return [text, table(head, rows)]
