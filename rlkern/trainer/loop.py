# SPDX-License-Identifier: Apache-2.0
"""A run from its settings to its summary."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError

import rlkern
from rlkern.runs import best
from rlkern.runs.device import is_out_of_memory
from rlkern.runs.errors import NotFinite, RewardError, UserError
from rlkern.runs.files import write_text
from rlkern.runs.folder import hold, say_damaged, set_aside
from rlkern.runs.interrupt import Interrupt
from rlkern.runs.logs import Log, NoLog, read_metrics
from rlkern.runs.parquet import drop_after
from rlkern.runs.settings.layers import dotted
from rlkern.runs.trackers import Start, begin_tracking
from rlkern.trainer import build, preflight
from rlkern.trainer.build import Run
from rlkern.trainer.parts import Parts
from rlkern.trainer.processes.parallel import whole_state
from rlkern.trainer.processes.world import World
from rlkern.trainer.run import checkpoint, rundir
from rlkern.trainer.run.checkpoint import Place, newest
from rlkern.trainer.run.sentences import (
    how_to_go_on,
    out_of_memory,
    out_of_time,
    say_finished,
)
from rlkern.trainer.settings import Settings, dump
from rlkern.trainer.settings.places import anchored, taken
from rlkern.trainer.show.completions import write_completions
from rlkern.trainer.show.display import Display
from rlkern.trainer.show.keys import COMPLETIONS
from rlkern.trainer.show.plot import plot_curves
from rlkern.trainer.update import Updater

SUMMARY = "summary.json"


class Clock:
    """Seconds of the run, those before a resume included."""

    def __init__(self, before: float) -> None:
        self._started = time.perf_counter() - before

    def seconds(self) -> float:
        """Returns the seconds so far."""
        return time.perf_counter() - self._started


@dataclass(frozen=True)
class Desk:
    """Where a run is written and shown."""

    folder: Path
    display: Display
    log: Log | NoLog
    clock: Clock
    interrupt: Interrupt


def train(settings: Settings, *, resume: bool = False, display: Display | None = None) -> dict:
    """Returns the summary of a whole run, which its directory then holds as summary.json."""
    given, settings = settings, anchored(settings)
    world = World.start(settings.device)
    preflight.check(settings, world, resume=resume)
    if not world.is_main:
        display = Display(Console(quiet=True))
    display = display or Display()
    for note in taken(given, settings):
        display.say(note)
    return _train(settings, world, display, resume=resume)


def _train(settings: Settings, world: World, display: Display, *, resume: bool) -> dict:
    folder = rundir.existing_run(settings) if resume else rundir.new_run(settings)
    try:
        with contextlib.ExitStack() as stack:
            if world.is_main and resume:
                stack.enter_context(hold(folder))
            world.barrier()  # nobody else writes it from here on
            saved, damaged = newest(folder)
            parts = build.load(settings, world, saved)
            _check_steps(parts, folder)
            for note in parts.task.notes:
                display.say(note)
            display.say(f"run {folder}" + (f", going on after {saved.name}" if saved else ""))
            say_damaged(damaged, saved, display.warn)
            if saved is not None:
                say_finished(parts, folder, display.say)
            world.barrier()  # everyone has seen the run as it was
            if world.is_main:
                set_aside(damaged)
                if not resume:
                    stack.enter_context(hold(folder))
                rundir.write_settings(folder, settings)
            interrupt = stack.enter_context(Interrupt())
            stack.enter_context(display)
            log = _log(parts, folder, parts.progress.step if saved else -1)
            stack.callback(log.close)
            desk = Desk(folder, display, log, Clock(parts.progress.seconds), interrupt)
            try:
                return _run(parts, saved, desk)
            except (RewardError, NotFinite) as error:
                where = f"after step {parts.progress.step}"
                raise UserError(f"{where}: {error}; {how_to_go_on(folder)}") from error
    except (OSError, SafetensorError) as error:
        sentence = f"{folder}: reading or writing failed: {error}; {how_to_go_on(folder)}"
        raise UserError(sentence) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(out_of_memory(settings, error, folder)) from error
    except KeyboardInterrupt:
        raise UserError(f"stopped; {how_to_go_on(folder)}", code=130) from None


def _log(parts: Parts, folder: Path, step: int) -> Log | NoLog:
    """Returns the log of a run, from which what lies past its checkpoint is gone."""
    if not parts.world.is_main:
        return NoLog()
    drop_after(folder / COMPLETIONS, step)
    settings = parts.settings
    start = Start(folder, step, dotted(Settings, dump(settings)))
    return Log(folder, step=step, trackers=begin_tracking(settings.output.log, start, "output.log"))


def _check_steps(parts: Parts, folder: Path) -> None:
    steps, done = parts.settings.steps, parts.progress.step
    if steps < done:
        raise UserError(f"steps must be at least the {done} that {folder} has done, got {steps}")


def _run(parts: Parts, saved: Path | None, desk: Desk) -> dict:
    settings, world = parts.settings, parts.world

    def after_step(step: int, loss: float, updater: Updater) -> None:
        assert settings.sft is not None
        desk.display.sft(step, settings.sft.steps, loss)
        late = step < settings.sft.steps and _late(parts, desk)
        if not late and not world.any(desk.interrupt.asked):
            return
        parts.progress.seconds = desk.clock.seconds()
        checkpoint.save_start(desk.folder, parts, updater)
        if late:
            raise UserError(out_of_time(desk.folder, step, settings.sft.steps, "supervised start"))
        raise KeyboardInterrupt

    fresh = saved is None or parts.progress.supervised > 0
    run = build.begin(parts, desk.folder, saved, say=desk.display.say, after_step=after_step)
    if fresh:
        _first_evaluation(run, desk)
        if settings.sft is not None:
            _save(run, desk)
    desk.display.begin(settings, run.parts.progress.step)
    while not _over(run, desk):
        _one_step(run, desk)
        if world.any(desk.interrupt.asked) and not _over(run, desk):
            _save(run, desk)
            raise KeyboardInterrupt
    return _finish(run, desk)


def _over(run: Run, desk: Desk) -> bool:
    """Returns True after the last step: that of the number asked, or of the time."""
    return run.parts.progress.step >= run.parts.settings.steps or _late(run.parts, desk)


def _late(parts: Parts, desk: Desk) -> bool:
    limit = parts.settings.max_seconds
    return limit > 0 and parts.world.from_main(desk.clock.seconds() >= limit)


def _first_evaluation(run: Run, desk: Desk) -> None:
    progress = run.parts.progress
    desk.display.say("evaluating on held-out items")
    with run.updater.gathered():
        progress.before = run.learner.evaluate()
    desk.display.evaluation(0, progress.before)
    desk.log.write(0, {**progress.before, "seconds": desk.clock.seconds()})


def _one_step(run: Run, desk: Desk) -> None:
    settings, output = run.parts.settings, run.parts.settings.output
    before = Place(run.parts)
    try:
        values, answers = run.learner.step(run.updater, desk.display.warn)
    except RewardError:
        before.put_back()
        _save(run, desk)
        raise
    step, last = run.parts.progress.step, _over(run, desk)
    if last or (settings.eval.every and step % settings.eval.every == 0):
        started = time.perf_counter()
        with run.updater.gathered():
            found = run.learner.evaluate()
        values.update(found, **{"time/eval": time.perf_counter() - started})
        if settings.eval.keep_best:
            _keep_best(run, desk, found)
        desk.display.evaluation(step, found)
    values["seconds"] = desk.clock.seconds()
    logged = last or step % output.log_every == 0 or "eval/accuracy" in values
    if logged:
        desk.log.write(step, values)
    desk.display.step(step, values, line=logged)
    if output.sample_every and (step % output.sample_every == 0 or step == 1):
        desk.display.samples(step, answers.samples)
    every, rows = output.completions, answers.rows
    written = every and (last or step == 1 or step % every == 0)
    if written and rows is not None and run.parts.world.is_main:
        write_completions(desk.folder, step, run.parts, rows)
    if last or (output.save_every and step % output.save_every == 0):
        desk.log.flush()
        _save(run, desk)


def _keep_best(run: Run, desk: Desk, found: dict[str, float]) -> None:
    policy, state = run.parts.policy, whole_state(run.parts.policy.model)
    if run.parts.world.is_main:
        save = functools.partial(policy.save, state=state)
        best.keep(desk.folder, run.parts.progress.step, found, save)


def _save(run: Run, desk: Desk) -> None:
    run.parts.progress.seconds = desk.clock.seconds()
    checkpoint.save(desk.folder, run.parts, run.updater)


def _finish(run: Run, desk: Desk) -> dict:
    """Returns the summary, after the main process wrote it and the curves."""
    world = run.parts.world
    summary = _summary(run.parts, desk) if world.is_main else {}
    if world.is_main:
        title = _title(desk.folder.name, summary)
        plot_curves(read_metrics(desk.folder), desk.folder / "curves.png", title=title)
        write_text(desk.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    summary = world.from_main(summary)
    done, steps = run.parts.progress.step, run.parts.settings.steps
    if done < steps:
        desk.display.say(out_of_time(desk.folder, done, steps, "run"))
    desk.display.final(desk.folder, summary)
    return summary


def _title(name: str, summary: dict) -> str:
    """Returns the line over the curves; of a model's folder it has only the end.

    >>> _title("3-ppo", {"algorithm": "ppo", "model": "/x/1-sft/checkpoint-9", "task": "addition"})
    '3-ppo: ppo, 1-sft/checkpoint-9, addition'
    """
    model = "/".join(Path(summary["model"]).parts[-2:])
    return f"{name}: {summary['algorithm']}, {model}, {summary['task']}"


def _summary(parts: Parts, desk: Desk) -> dict:
    settings, progress = parts.settings, parts.progress
    lines = read_metrics(desk.folder)
    after = {key: value for key, value in lines[-1].items() if key.startswith("eval/")}
    compared = [key for key in lines[-1] if "compare/" in key]
    return {
        "name": desk.folder.name,
        "algorithm": settings.algorithm,
        "model": settings.model,
        "task": settings.asked,
        "seed": settings.seed,
        "steps": progress.step,
        "loss": settings.loss.path,
        **{f"{key}_before": value for key, value in progress.before.items()},
        **{f"{key}_after": value for key, value in after.items()},
        "wall_seconds": round(desk.clock.seconds(), 3),
        "processes": parts.world.size,
        "backend": served_by(parts),
        "num_tokens": progress.num_tokens,
        "generated_tokens": progress.generated_tokens,
        "sampled_groups": progress.sampled_groups,
        "useful_groups": progress.useful_groups,
        "skipped_updates": progress.skipped_updates,
        "compare": {key: max(line.get(key) or 0.0 for line in lines) for key in compared},
    }


def served_by(parts: Parts) -> str:
    """Returns the name of the backend that swept the logits in this run."""
    if parts.settings.loss.path == "eager":
        return "eager"
    weights = torch.bfloat16 if parts.policy.mixed else parts.policy.model.dtype
    return rlkern.backend_name("token_logprob", parts.policy.device.type, weights)
