# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from rlkern.trainer.config import Config

# Label, metric and format of the live panel and of a plain line.
_SHOWN = (
    ("reward", "reward", "{:.3f}"),
    ("kl", "kl", "{:.4f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("clip low", "clip_ratio/low_mean", "{:.3f}"),
    ("clip high", "clip_ratio/high_mean", "{:.3f}"),
    ("equal groups", "frac_reward_zero_std", "{:.2f}"),
    ("grad", "grad_norm", "{:.2f}"),
    ("length", "completions/mean_length", "{:.1f}"),
    ("skipped", "skipped_updates", "{:.0f}"),
)
_TIMES = ("rollout", "reward", "score", "loss", "step")


class Display:
    """Shows a run; every method may be called in any order, and prints nothing that is not given to
    it.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._live = (
            Live(self._progress, console=self.console, transient=True)
            if self.console.is_terminal
            else None
        )
        self._sft: TaskID | None = None
        self._rl: TaskID | None = None
        self._total = 0
        self._started = time.perf_counter()
        self._first = 0

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """Print a line."""
        self.console.print(Text(sentence), soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Print a line that stands out."""
        self.console.print(Text(f"warning: {sentence}", style="yellow"), soft_wrap=True)

    def sft(self, step: int, total: int, loss: float) -> None:
        """Show the progress of the supervised stage."""
        if self._sft is None:
            self._sft = self._progress.add_task("supervised", total=total)
        self._progress.update(self._sft, completed=step)
        if step == total or (self._live is None and step % max(1, total // 4) == 0):
            self.say(f"supervised step {step}/{total}  loss {loss:.3f}")

    def begin(self, config: Config, step: int) -> None:
        """Start the progress of the reinforcement learning at `step`."""
        self._total, self._first, self._started = config.steps, step, time.perf_counter()
        self._rl = self._progress.add_task(config.algorithm, total=config.steps, completed=step)

    def step(self, step: int, values: dict[str, float], *, line: bool) -> None:
        """Show a step's metrics, its time split and the time left; outside a terminal if `line`."""
        if self._live:
            if self._rl is not None:
                self._progress.update(self._rl, completed=step)
            self._live.update(Group(self._progress, _panel(values)))
            return
        if not line:
            return
        shown = "  ".join(
            f"{label} {form.format(values[key])}"
            for label, key, form in _SHOWN[:6]
            if key in values
        )
        spent = " ".join(
            f"{name} {values[f'time/{name}']:.2f}" for name in _TIMES if f"time/{name}" in values
        )
        self.say(
            f"step {step}/{self._total}  {shown}  s: {spent}"
            f"  left {self._left(step)}{_comparison(values)}"
        )

    def _left(self, step: int) -> str:
        done = max(1, step - self._first)
        seconds = (time.perf_counter() - self._started) / done * (self._total - step)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Print held-out accuracy."""
        kinds = "  ".join(
            f"{key.removeprefix('eval/accuracy_')} {value:.3f}"
            for key, value in values.items()
            if "_" in key
        )
        self.say(f"held-out accuracy after step {step}: {kinds}")

    def samples(self, step: int, samples: list[tuple[str, str, float]]) -> None:
        """Print a table of completions with their rewards."""
        table = Table(title=f"samples of step {step}", title_justify="left")
        table.add_column("prompt (its end)")
        table.add_column("completion")
        table.add_column("reward", justify="right")
        for prompt, completion, reward in samples:
            table.add_row(Text(repr(prompt[-40:])), Text(repr(completion[:60])), f"{reward:g}")
        self.console.print(table)

    def final(self, run: Path, summary: dict) -> None:
        """Print the table a run ends with: before, after, seconds."""
        if self._live:
            self._live.stop()
        table = Table(title=f"{run.name}: held-out accuracy", title_justify="left")
        for column in ("", "before", "after", "seconds"):
            table.add_column(column, justify="left" if not column else "right")
        seconds = f"{summary['wall_seconds']:.1f}"
        for mode in ("sampled", "greedy"):
            before, after = (
                summary.get(f"eval/accuracy_{mode}_{when}") for when in ("before", "after")
            )
            if before is not None and after is not None:
                table.add_row(mode, f"{before:.3f}", f"{after:.3f}", seconds)
                seconds = ""
        self.console.print(table)
        compared = "".join(
            f"; largest {key[8:]} {value:.2e}" for key, value in summary["compare"].items()
        )
        self.say(f"loss by backend {summary['backend']}{compared}; everything is in {run}")


def _panel(values: dict[str, float]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(*(Text(label, style="dim") for label, key, _ in _SHOWN if key in values))
    table.add_row(*(Text(form.format(values[key])) for _, key, form in _SHOWN if key in values))
    total = max(values.get("step_time", 0.0), 1e-9)
    split = "  ".join(
        f"{name} {values[f'time/{name}']:.2f} s ({100 * values[f'time/{name}'] / total:.0f}%)"
        for name in _TIMES
        if f"time/{name}" in values
    )
    outer = Table.grid()
    outer.add_row(table)
    outer.add_row(Text(split + _comparison(values), style="dim"))
    return outer


def _comparison(values: dict[str, float]) -> str:
    if "compare/loss_difference" not in values:
        return ""
    loss, norm = values["compare/loss_difference"], values["compare/grad_norm_difference"]
    return f"  fused-eager: loss {loss:.1e}, grad norm {norm:.1e}"
