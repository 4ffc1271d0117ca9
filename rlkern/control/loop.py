# SPDX-License-Identifier: Apache-2.0
"""A run of a classic algorithm from its settings to its summary."""

from __future__ import annotations

import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from rlkern.control import checkpoint
from rlkern.control.environments import Environments
from rlkern.control.evaluate import evaluate
from rlkern.control.learner import Learner
from rlkern.control.pictures import draw
from rlkern.control.settings import Layer, Settings, declared, differing, resolve
from rlkern.control.show import Display
from rlkern.control.suits import check
from rlkern.runs.errors import UserError
from rlkern.runs.files import write_text
from rlkern.runs.folder import (
    CONFIG,
    all_checkpoints,
    check_same,
    existing_folder,
    hold,
    joined,
    new_folder,
    say_damaged,
    set_aside,
)
from rlkern.runs.interrupt import Interrupt
from rlkern.runs.logs import Log
from rlkern.runs.settings.yaml_file import read, to_yaml
from rlkern.runs.trackers import Start, begin_tracking, check_trackers

SUMMARY = "summary.json"


@dataclass
class Progress:
    """What a run remembers of itself beside what it learns.

    seconds    wall time so far
    episodes   episodes that have ended
    best       the highest eval/return so far and the step at which it was measured
    values     what was measured since the last line of metrics.jsonl
    """

    seconds: float = 0.0
    episodes: int = 0
    best: list[float] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """The parts of a run that is under way."""

    folder: Path
    settings: Settings
    learner: Learner
    environments: Environments
    progress: Progress
    display: Display
    log: Log
    started: float
    measured: dict[str, float] = field(default_factory=dict)

    def seconds(self) -> float:
        """Returns the wall time of the run, that before a resume included."""
        return self.progress.seconds + time.perf_counter() - self.started


def train(settings: Settings, *, resume: bool = False, display: Display | None = None) -> dict:
    """Returns the summary of a whole run, which its directory then holds as summary.json."""
    display = display or Display()
    parent, base = Path(settings.output_dir), joined(settings.algorithm, settings.env)
    where = existing_folder if resume else new_folder
    folder = where(parent, settings.name, base)
    if resume:
        saved_settings = resolve(Layer(str(folder / CONFIG), read(folder / CONFIG)))
        check_same(folder, differing(settings, saved_settings))
    try:
        return _train(settings, folder, display)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: reading or writing failed: {error}") from error
    except MemoryError as error:
        raise UserError(f"out of memory: {error}") from error


def _train(settings: Settings, folder: Path, display: Display) -> dict:
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    environments = Environments(
        settings.env, settings.env_options, settings.num_envs, settings.seed
    )
    with contextlib.ExitStack() as stack:
        stack.callback(environments.close)
        check(settings, environments)
        check_trackers(settings.log, "log")
        stack.enter_context(hold(folder))
        write_text(folder / CONFIG, to_yaml(settings.model_dump(mode="json")))
        _seed(settings.seed)
        learner = declared(settings).learner(settings, environments)
        stack.callback(learner.close)
        progress = Progress()
        saved, made_with, tree, damaged = checkpoint.newest(folder)
        if saved is not None:
            check_same(saved, differing(settings, resolve(Layer(str(saved), made_with))))
            progress = Progress(**checkpoint.restore(tree, learner, environments))
        display.say(f"run {folder}" + (f", going on after {saved.name}" if saved else ""))
        say_damaged(damaged, saved, display.say)
        set_aside(damaged)
        interrupt = stack.enter_context(Interrupt())
        stack.enter_context(display)
        step = environments.steps if saved else -1
        told = Start(folder, step, settings.model_dump(mode="json"))
        log = Log(folder, step=step, trackers=begin_tracking(settings.log, told, "log"))
        stack.callback(log.close)
        run = Run(
            folder, settings, learner, environments, progress, display, log, time.perf_counter()
        )
        if _over(run) and (folder / SUMMARY).is_file():
            display.say(f"the run has ended after {environments.steps} steps")
            return json.loads((folder / SUMMARY).read_text())
        try:
            return _run(run, interrupt)
        except KeyboardInterrupt:
            raise UserError(f"stopped; {_how_to_go_on(folder)}", code=130) from None


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _how_to_go_on(folder: Path) -> str:
    saved = all_checkpoints(folder)
    kept = f"{saved[-1].name} is whole" if saved else "no checkpoint was saved yet"
    return f"{kept}, go on with: rlkern control --resume {folder}"


def _run(run: Run, interrupt: Interrupt) -> dict:
    settings, environments = run.settings, run.environments
    run.display.begin(settings, environments.steps)
    marks = _Marks(run)
    values = dict(run.progress.values)
    # A run that was killed after its last checkpoint has everything but its end.
    over = _over(run)
    if over:
        _evaluated(run)
    while not over:
        values.update(run.learner.iterate())
        over = _over(run)
        if over or marks.passed("eval", settings.eval_every):
            values.update(_evaluated(run))
        if over or marks.passed("log", settings.log_every) or "eval/return" in values:
            _report(run, values, marks)
            values = {}
        if over or interrupt.asked or marks.passed("save", settings.save_every):
            run.log.flush()
            _save(run, values)
        if interrupt.asked and not over:
            raise KeyboardInterrupt
    return _finish(run)


def _over(run: Run) -> bool:
    late = 0 < run.settings.max_seconds <= run.seconds()
    return run.environments.steps >= run.settings.steps or late


class _Marks:
    """Tells when a number of steps was passed, and how fast the steps were since a mark."""

    def __init__(self, run: Run) -> None:
        self._environments = run.environments
        self._last = dict.fromkeys(("eval", "log", "save"), run.environments.steps)
        self._at, self._when = run.environments.steps, time.perf_counter()

    def passed(self, name: str, every: int) -> bool:
        """Returns whether a multiple of `every` lies between the last call and now."""
        before, now = self._last[name], self._environments.steps
        self._last[name] = now
        return every > 0 and now // every > before // every

    def speed(self) -> float:
        """Returns the steps a second since the last call."""
        steps, seconds = self._environments.steps - self._at, time.perf_counter() - self._when
        self._at, self._when = self._environments.steps, time.perf_counter()
        return steps / max(seconds, 1e-9)


def _evaluated(run: Run) -> dict[str, float]:
    found = evaluate(run.learner, run.settings.eval_episodes)
    best = run.progress.best
    if not best or found["eval/return"] > best[0]:
        run.progress.best = [found["eval/return"], run.environments.steps]
    run.measured = found
    return found


def _report(run: Run, values: dict[str, float], marks: _Marks) -> None:
    ended = run.environments.finished
    if ended:
        run.progress.episodes += len(ended)
        values["charts/episodic_return"] = float(np.mean([each.total for each in ended]))
        values["charts/episodic_length"] = float(np.mean([each.length for each in ended]))
        ended.clear()
    values["charts/episodes"] = run.progress.episodes
    values["charts/SPS"] = marks.speed()
    values["seconds"] = run.seconds()
    run.log.write(run.environments.steps, values)
    run.display.step(run.environments.steps, values)


def _say_other_end(run: Run) -> None:
    """Says that a run has ended before or behind the steps that were asked, if it has."""
    taken, asked = run.environments.steps, run.settings.steps
    if taken > asked:
        run.display.say(
            f"{taken} steps were taken, {taken - asked} more than asked, since a run ends with the"
            " update that passes them"
        )
    if taken < asked:
        run.display.say(
            f"max_seconds ended the run after {taken} of {asked} steps;"
            f" {_how_to_go_on(run.folder)} --max_seconds 0"
        )


def _save(run: Run, values: dict[str, float]) -> None:
    progress = Progress(run.seconds(), run.progress.episodes, run.progress.best, values)
    checkpoint.save(run.folder, run.learner, run.environments, vars(progress))


def _finish(run: Run) -> dict:
    """Returns the summary, after writing it and the pictures."""
    summary = {
        "name": run.folder.name,
        "algorithm": run.settings.algorithm,
        "env": run.settings.env,
        "seed": run.settings.seed,
        "steps": run.environments.steps,
        "episodes": run.progress.episodes,
        **run.measured,
        "best_return": run.progress.best[0],
        "best_step": run.progress.best[1],
        "wall_seconds": round(run.seconds(), 3),
    }
    _say_other_end(run)
    draw(run.folder, run.learner, summary)
    write_text(run.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    run.display.final(run.folder, summary)
    return summary
