# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table
from rich.text import Text

from rlkern.runs import display as base
from rlkern.runs.display import columns, number, quoted
from rlkern.trainer.metrics import METRICS
from rlkern.trainer.settings import Settings
from rlkern.trainer.show.keys import reward_functions

_TIMES = ("rollout", "reward", "score", "loss", "step")
# A loss below this is called zero: the rounding of a sum of centred advantages.
_ZERO = 1e-6


def _shown(values: dict[str, float], *, line: bool) -> list[tuple[str, str]]:
    """Returns (label, number) of what describes a step, on a plain line or in the live panel; each
    reward function by itself if there are several.
    """
    rows = [
        each for each in METRICS if each.label and each.key in values and (each.line or not line)
    ]
    shown = [(each.label, number(each.form, values[each.key])) for each in rows]
    names = reward_functions(values)
    if len(names) > 1:
        own = [(name, number("{:.3f}", values[f"rewards/{name}/mean"])) for name in names]
        shown[1:1] = own
    return shown


class Display(base.Display):
    """Shows a run of the trainer."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._sft: TaskID | None = None
        self._explained = False

    def sft(self, step: int, total: int, loss: float) -> None:
        """Show the progress of the supervised stage."""
        if self._sft is None:
            self._sft = self._progress.add_task("supervised", total=total)
        self._progress.update(self._sft, completed=step)
        if step == total or (self._live is None and step % max(1, total // 4) == 0):
            self.say(f"supervised step {step}/{total}  loss {loss:.3f}")

    def begin(self, settings: Settings, step: int) -> None:
        """Start the progress of the reinforcement learning at `step`."""
        self.start_bar(settings.algorithm, settings.steps, step)

    def step(self, step: int, values: dict[str, float], *, line: bool) -> None:
        """Show a step's metrics, its time split and the time left; outside a terminal if `line`."""
        self._explain_zero_loss(values)
        shown = "  ".join(f"{label} {value}" for label, value in _shown(values, line=True))
        spent = " ".join(
            f"{name} {values[f'time/{name}']:.2f}" for name in _TIMES if f"time/{name}" in values
        )
        plain = f"{shown}  s: {spent}{_comparison(values)}"
        self.advance(step, _panel(values), plain if line else None)

    def _explain_zero_loss(self, values: dict[str, float]) -> None:
        """Say once why a loss of 0 is no mistake."""
        ratio, norm = values.get("ratio/mean", 0.0), values.get("grad_norm", 0.0)
        zero = abs(values.get("loss", 1.0)) < _ZERO and abs(ratio - 1) < _ZERO
        if self._explained or not zero or not norm > 0:
            return
        self._explained = True
        self.say(
            "note: the loss is 0 because every ratio is 1 on the first pass over a rollout and the"
            f" advantages are centred; its gradient is not (norm {norm:.2g}), and that is what"
            " trains"
        )

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Print what was measured on held-out data."""
        kinds = "  ".join(f"{label} {value:.3f}" for label, value in measured(values))
        self.say(f"held-out {_score(values)} after step {step}: {kinds}")

    def samples(self, step: int, samples: list[tuple[str, str, float]]) -> None:
        """Print a table of completions with their questions and rewards."""
        table = Table(title=f"samples of step {step}", title_justify="left")
        table.add_column("question")
        table.add_column("completion")
        table.add_column("reward", justify="right")
        for asked, completion, reward in samples:
            texts = (Text(quoted(asked, 40)), Text(quoted(completion, 60)))
            table.add_row(*texts, f"{reward:g}")
        self.console.print(table)

    def final(self, run: Path, summary: dict) -> None:
        """Print the table a run ends with: before, after, seconds."""
        if self._live:
            self._live.stop()
        table = Table(title=f"{run.name}: held-out {_score(summary)}", title_justify="left")
        for column in ("", "before", "after", "seconds"):
            table.add_column(column, justify="left" if not column else "right")
        seconds = f"{summary['wall_seconds']:.1f}"
        for label, before, after in _changes(summary):
            table.add_row(label, f"{before:.3f}", f"{after:.3f}", seconds)
            seconds = ""
        self.console.print(table)
        compared = "".join(
            f"; largest {key[8:]} {value:.2e}" for key, value in summary["compare"].items()
        )
        self.say(f"loss by backend {summary['backend']}{compared}; everything is in {run}")

    def stages(self, folder: Path, summaries: list[dict]) -> None:
        """Print the table a pipeline ends with: each stage before and after."""
        scores = " and ".join(dict.fromkeys(map(_score, summaries)))
        table = Table(title=f"{folder.name}: held-out {scores}", title_justify="left")
        for column in ("stage", "", "before", "after", "seconds"):
            table.add_column(column, justify="left" if column in ("stage", "") else "right")
        for summary in summaries:
            label, seconds = summary["name"], f"{summary['wall_seconds']:.1f}"
            for name, before, after in _changes(summary):
                table.add_row(label, name, f"{before:.3f}", f"{after:.3f}", seconds)
                label = seconds = ""
        self.console.print(table)
        self.say(f"everything is in {folder}")


def _changes(summary: dict) -> list[tuple[str, float, float]]:
    """Returns (label, before, after) of what a run measured at both ends."""
    ends = [
        {k[: -len(when)]: v for k, v in summary.items() if k.endswith(when) and v is not None}
        for when in ("_before", "_after")
    ]
    after = dict(measured(ends[1]))
    return [(label, v, after[label]) for label, v in measured(ends[0]) if label in after]


def _score(values: Iterable[str]) -> str:
    """Returns what held-out data are measured by: a reward, or the share of answers or pairs that
    are right."""
    return "reward" if any(key.startswith("eval/reward_") for key in values) else "accuracy"


def measured(values: dict[str, float]) -> list[tuple[str, float]]:
    """Returns (label, value) of the eval/* metrics, those that repeat another one left out.

    >>> measured({"eval/accuracy": 0.5, "eval/accuracy_greedy": 0.5, "eval/pass@4": 0.8})
    [('greedy', 0.5), ('pass@4', 0.8)]
    """
    found = {key[5:]: value for key, value in values.items() if key.startswith("eval/")}
    if len(found) > 1:
        found.pop("accuracy", None)
    if "accuracy_sampled" in found:
        found.pop("pass@1", None)
    return [(key.removeprefix("accuracy_"), value) for key, value in found.items()]


def _panel(values: dict[str, float]) -> Table:
    outer = columns(_shown(values, line=False))
    total = max(values.get("step_time", 0.0), 1e-9)
    split = "  ".join(
        f"{name} {values[f'time/{name}']:.2f} s ({100 * values[f'time/{name}'] / total:.0f}%)"
        for name in _TIMES
        if f"time/{name}" in values
    )
    outer.add_row(Text(split + _comparison(values), style="dim"))
    return outer


def _comparison(values: dict[str, float]) -> str:
    if "compare/loss_difference" not in values:
        return ""
    loss, norm = values["compare/loss_difference"], values["compare/grad_norm_difference"]
    return f"  fused-eager: loss {loss:.1e}, grad norm {norm:.1e}"
