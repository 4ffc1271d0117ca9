# SPDX-License-Identifier: Apache-2.0
"""A run from its settings to its summary."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError

import rlkern
from rlkern.trainer.checked import check
from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.learners import Learner, make_learner
from rlkern.trainer.offline.sft import supervise
from rlkern.trainer.processes.parallel import check_parallel, whole_state
from rlkern.trainer.processes.world import World
from rlkern.trainer.run import best, checkpoint, rundir
from rlkern.trainer.run.checkpoint import all_checkpoints
from rlkern.trainer.run.files import write_text
from rlkern.trainer.run.interrupt import Interrupt
from rlkern.trainer.run.logs import Log, read_metrics
from rlkern.trainer.session import Session, attach_adapters, build
from rlkern.trainer.settings import resolve
from rlkern.trainer.show.display import Display
from rlkern.trainer.show.plot import plot_curves

SUMMARY = "summary.json"


def train(config: Config, *, resume: bool = False, display: Display | None = None) -> dict:
    """Returns the summary of a whole run, which its directory then holds as summary.json."""
    check(config)
    config, world = resolve(config), World.start(config.device)
    check_parallel(config, world)
    if not world.is_main:
        display = Display(Console(quiet=True))
    return _train(config, world, display or Display(), resume=resume)


def _train(config: Config, world: World, display: Display, *, resume: bool) -> dict:
    run = rundir.existing_run(config) if resume else rundir.new_run(config)
    try:
        with contextlib.ExitStack() as stack:
            if world.is_main and resume:
                stack.enter_context(rundir.hold(run))
            world.barrier()  # nobody else writes it from here on
            saved = all_checkpoints(run)
            session = build(config, resume_from=saved[-1] if saved else None, world=world)
            _check_steps(config, session.progress.step, run)
            learner = make_learner(session)
            display.say(f"run {run}" + (f", going on after {saved[-1].name}" if saved else ""))
            world.barrier()  # everyone has seen the run as it was
            if world.is_main:
                if not resume:
                    stack.enter_context(rundir.hold(run))
                rundir.write_config(run, config)
            interrupt = stack.enter_context(Interrupt())
            stack.enter_context(display)
            return _run(session, learner, run, display, interrupt)
    except (OSError, SafetensorError) as error:
        sentence = f"{run}: reading or writing failed: {error}; {_how_to_go_on(run)}"
        raise UserError(sentence) from error
    except KeyboardInterrupt:
        raise UserError(f"stopped; {_how_to_go_on(run)}", code=130) from None


def _check_steps(config: Config, done: int, run: Path) -> None:
    if config.steps < done:
        raise UserError(
            f"steps must be at least the {done} that {run} has done, got {config.steps}"
        )


def _how_to_go_on(run: Path) -> str:
    if not (run / rundir.CONFIG).is_file():
        return "the run had not begun"
    saved = all_checkpoints(run)
    kept = f"{saved[-1].name} is whole" if saved else "no checkpoint was saved yet"
    return f"{kept}, go on with: rlkern train --resume {run}"


def _run(
    session: Session, learner: Learner, run: Path, display: Display, interrupt: Interrupt
) -> dict:
    config, progress, world = session.config, session.progress, session.world
    fresh = progress.step == 0 and not all_checkpoints(run)
    world.barrier()
    log = Log(run, step=-1 if fresh else progress.step) if world.is_main else NoLog()
    clock = Clock(progress.seconds)
    try:
        if fresh and config.sft_steps:
            _supervise(session, display, interrupt)
        attach_adapters(session, run)
        learner.prepare(run, display)
        learner.losses = session.spread(learner.losses)
        if fresh:
            _first_evaluation(session, learner, log, display, clock)
            if config.sft_steps:
                _save(session, run, clock)
        display.begin(config, progress.step)
        while not _over(session, clock):
            _one_step(session, learner, run, log, display, clock)
            if world.any(interrupt.asked) and not _over(session, clock):
                _save(session, run, clock)
                raise KeyboardInterrupt
        return _finish(session, run, display, clock)
    finally:
        log.close()


def _over(session: Session, clock: Clock) -> bool:
    """Returns True after the last step: that of the number asked, or of the time."""
    config = session.config
    late = config.max_seconds > 0 and clock.seconds() >= config.max_seconds
    return session.progress.step >= config.steps or session.world.from_main(late)


class NoLog:
    """Stands in for the log in processes that write nothing."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    close = flush


class Clock:
    """Seconds of the run, those before a resume included."""

    def __init__(self, before: float) -> None:
        self._started = time.perf_counter() - before

    def seconds(self) -> float:
        """Returns the seconds so far."""
        return time.perf_counter() - self._started


def _supervise(session: Session, display: Display, interrupt: Interrupt) -> None:
    """Run the supervised steps before step 1."""

    def after_step(step: int, loss: float) -> None:
        display.sft(step, session.config.sft_steps or 0, loss)
        if session.world.any(interrupt.asked):
            raise KeyboardInterrupt

    supervise(session, after_step=after_step)


def _first_evaluation(
    session: Session, learner: Learner, log: Log | NoLog, display: Display, clock: Clock
) -> None:
    display.say("evaluating on held-out items")
    with session.gathered():
        session.progress.before = learner.evaluate()
    display.evaluation(0, session.progress.before)
    log.write(0, {**session.progress.before, "seconds": clock.seconds()})


def _one_step(
    session: Session, learner: Learner, run: Path, log: Log | NoLog, display: Display, clock: Clock
) -> None:
    config, progress = session.config, session.progress
    values, samples = learner.iterate(display.warn)
    step, last = progress.step, _over(session, clock)
    if last or (config.eval_every and step % config.eval_every == 0):
        started = time.perf_counter()
        with session.gathered():
            found = learner.evaluate()
        values.update(found, **{"time/eval": time.perf_counter() - started})
        if config.keep_best:
            _keep_best(session, run, found)
        display.evaluation(step, found)
    values["seconds"] = clock.seconds()
    logged = last or step % config.log_every == 0 or "eval/accuracy" in values
    if logged:
        log.write(step, values)
    display.step(step, values, line=logged)
    if config.sample_every and (step % config.sample_every == 0 or step == 1):
        display.samples(step, samples)
    if last or (config.save_every and step % config.save_every == 0):
        log.flush()
        _save(session, run, clock)


def _keep_best(session: Session, run: Path, found: dict[str, float]) -> None:
    state = whole_state(session.policy.model)
    if session.world.is_main:
        save = functools.partial(session.policy.save, state=state)
        best.keep(run, session.progress.step, found, save)


def _save(session: Session, run: Path, clock: Clock) -> None:
    session.progress.seconds = clock.seconds()
    checkpoint.save(run, session)


def _finish(session: Session, run: Path, display: Display, clock: Clock) -> dict:
    """Returns the summary, after the main process wrote it and the curves."""
    world = session.world
    summary = _summary(session, run, clock) if world.is_main else {}
    if world.is_main:
        plot_curves(
            read_metrics(run),
            run / "curves.png",
            title=_title(run.name, summary),
        )
        write_text(run / SUMMARY, json.dumps(summary, indent=1) + "\n")
    display.final(run, world.from_main(summary))
    return world.from_main(summary)


def _title(name: str, summary: dict) -> str:
    """Returns the line over the curves; of a model's folder it has the end alone.

    >>> _title("3-ppo", {"algorithm": "ppo", "model": "/x/1-sft/checkpoint-9", "task": "addition"})
    '3-ppo: ppo, 1-sft/checkpoint-9, addition'
    """
    model = "/".join(Path(summary["model"]).parts[-2:])
    return f"{name}: {summary['algorithm']}, {model}, {summary['task']}"


def _summary(session: Session, run: Path, clock: Clock) -> dict:
    config, progress = session.config, session.progress
    lines = read_metrics(run)
    after = {key: value for key, value in lines[-1].items() if key.startswith("eval/")}
    return {
        "name": run.name,
        **{
            key: getattr(config, key)
            for key in ("algorithm", "model", "task", "seed", "steps", "loss")
        },
        **{f"{key}_before": value for key, value in progress.before.items()},
        **{f"{key}_after": value for key, value in after.items()},
        "wall_seconds": round(clock.seconds(), 3),
        "processes": session.world.size,
        "backend": served_by(session),
        "num_tokens": progress.num_tokens,
        "generated_tokens": progress.generated_tokens,
        "sampled_groups": progress.sampled_groups,
        "useful_groups": progress.useful_groups,
        "skipped_updates": progress.skipped_updates,
        "compare": {
            key: max(line.get(key) or 0.0 for line in lines)
            for key in lines[-1]
            if "compare/" in key
        },
    }


def served_by(session: Session) -> str:
    """Returns the name of the backend that swept the logits in this run."""
    if session.config.loss == "eager":
        return "eager"
    policy = session.policy
    weights = torch.bfloat16 if policy.mixed else policy.model.dtype
    return rlkern.backend_name("token_logprob", policy.device.type, weights)
