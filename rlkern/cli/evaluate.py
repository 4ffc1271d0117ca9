# SPDX-License-Identifier: Apache-2.0
"""`rlkern eval`: how often the answers of a run's model, or of any model, are right."""

from __future__ import annotations

import argparse
import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkern.cli.guard import guarded, silence_hub, warn
from rlkern.cli.parser import Parser, given
from rlkern.runs import best
from rlkern.trainer.settings.keys import OF_DATA

if TYPE_CHECKING:
    from rlkern.cli.target import Target
    from rlkern.trainer.evaluate import Answers
    from rlkern.trainer.settings import Settings
    from rlkern.trainer.tasks.task import Item

# Longest beginning of a question and of a completion in the table of samples.
_QUESTION, _COMPLETION = 40, 60
# Answers in that table, and the keys that a run without answers reads of an evaluation.
_SHOWN, _OF_ROWS = 8, ("eval.batch", "device", "dtype", "threads")


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern eval`."""
    return guarded("eval", lambda: _evaluate(arguments))


# Flags that are shorter than the keys that they set.
_SHORT = {
    "items": ("eval.items", "held-out items"),
    "samples": ("eval.samples", "sampled answers to each item"),
    "pass_at": ("eval.pass_at", "values of k with commas"),
    "modes": ("eval.modes", "sampled, greedy or both with a comma"),
    "eval_batch": ("eval.batch", "answers sampled at once"),
    "temperature": ("rollout.temperature", "sampling temperature"),
    "top_k": ("rollout.top_k", "sample among the k likeliest tokens; 0 among all"),
    "top_p": ("rollout.top_p", "sample among tokens of this total probability; 1 among all"),
    "max_new_tokens": (
        "rollout.max_new_tokens",
        "longest answer in tokens; 0 takes the task's own",
    ),
    "shots": ("data.shots", "solved examples before each question"),
    "template": ("data.template", "text that ends where the answer starts"),
    "task": ("task", "task, for a model that belongs to no run"),
    "seed": ("seed", "seed of the sampler and the held-out items"),
    "device": ("device", "cpu, cuda or auto"),
    "dtype": ("dtype", "float32, bfloat16 or mixed"),
    "threads": ("threads", "CPU threads; 0 leaves torch's own choice"),
}


def _parser() -> Parser:
    parser = Parser(
        prog="rlkern eval",
        description="Accuracy and pass@k on held-out items. A run directory brings its own task and"
        " settings; flags override them. A run on preferences, or on given answers of a file, is"
        " measured on the ones that it held out.",
        free=OF_DATA,
    )
    take = parser.add_argument
    take("target", help="run directory, checkpoint, model directory, tiny or smollm2")
    take("--checkpoint", metavar="X", help="of a run: best, newest or a step (default best)")
    for flag, (key, says) in _SHORT.items():
        take(f"--{flag}", dest=key, metavar="X", help=says, default=argparse.SUPPRESS)
    says = "answers in the table of samples (default 8)"
    take("--show", type=int, default=argparse.SUPPRESS, help=says)
    take("--json", action="store_true", help="print one line of JSON and nothing else")
    return parser


def _evaluate(arguments: list[str]) -> int:
    flags = given(_parser(), arguments)
    if flags is None:
        return 0
    from rlkern.cli.target import check_writes, find_target, settings_for
    from rlkern.trainer.measure import check_same, own_rows
    from rlkern.trainer.settings.reads import facts

    once = functools.cache(warn)  # its rows and its task may both name a changed function
    name, checkpoint, as_json = flags.pop("target"), flags.pop("checkpoint"), flags.pop("json")
    _check_show(flags, as_json)
    target = find_target(name, checkpoint, lambda *_: None)
    silence_hub()
    own = target.settings
    if own is not None and not facts(own).answers_task and "task" not in flags:
        settings = _without_answers(target, own, flags)
        values = own_rows(settings, Path(target.model), warn)
        about = {"model": target.model, "label": target.label, "task": settings.asked}
        print(_line(about, values)) if as_json else _print_own(target, settings, values)
        return 0
    if own is not None:
        check_writes(Path(name), own)
    show = flags.pop("show", _SHOWN)
    settings = settings_for(target, _with_pass_at(flags))
    _check_drawn(settings, flags)
    if own is not None and (settings.asked, settings.data) == (own.asked, own.data):
        check_same(settings, Path(target.model).resolve().parent, once)
    items, found = _answers(target, settings)
    values = _values(settings, found)
    if own is not None and facts(own).judges and settings.asked == own.asked:
        pairs = own_rows(own, Path(target.model), once)
        values.update({key: value for key, value in pairs.items() if key != best.KEY})
    if as_json:
        print(_line(_about(target, settings), values))
    else:
        _print(target, settings, values, items, found, show)
    return 0


def _check_show(flags: dict[str, Any], as_json: bool) -> None:
    """Raises UserError for a number of answers that nothing shows."""
    from rlkern.runs.errors import UserError

    if "show" in flags and (as_json or flags["show"] < 0):
        raise UserError(f"show must be 0 or more, and not with --json, got {flags['show']}")


def _check_drawn(settings: Settings, flags: dict[str, Any]) -> None:
    """Raises UserError for a flag about drawn answers where none is drawn."""
    from rlkern.runs.errors import UserError

    if "sampled" in settings.eval.modes:
        return
    for key in ("rollout.temperature", "rollout.top_k", "rollout.top_p"):
        if key in flags:
            short = key.rpartition(".")[2]
            raise UserError(
                f"{short} is of drawn answers, and modes {', '.join(settings.eval.modes)} draws"
                f" none: leave {short} out"
            )


def _without_answers(target: Target, own: Settings, flags: dict[str, Any]) -> Settings:
    """Returns the settings of a run that is measured without answers, with flags over them; Raises
    UserError for a flag about answers."""
    from rlkern.runs.errors import UserError
    from rlkern.trainer.settings import Layer, dump, resolve

    unread = next((flag for flag in flags if flag not in _OF_ROWS), None)
    if unread is not None:
        flag = next((short for short, (key, _) in _SHORT.items() if key == unread), unread)
        raise UserError(
            f"{target.label} is measured on the given answers that it held out, and then {flag} is"
            " not read; leave it out"
        )
    return resolve(Layer(target.label, dump(own)), Layer("flags", flags))


def _line(about: dict[str, Any], values: dict[str, float]) -> str:
    """Returns one line of JSON; a number that is not finite is null."""
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return json.dumps({**about, **finite})


def _with_pass_at(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the changes with a pass@k for the number of samples that was asked, if no k was."""
    samples = str(changes.get("eval.samples", ""))
    if samples.isdecimal() and "eval.pass_at" not in changes:
        changes = {**changes, "eval.pass_at": sorted({1, int(samples)})}
    return changes


def _answers(target: Target, settings: Settings) -> tuple[list[Item], dict[str, Answers]]:
    """Returns the held-out items and the answers to them in each mode."""
    import torch

    from rlkern.runs.device import resolve_device
    from rlkern.trainer.evaluate import answer, in_mode, samples_in
    from rlkern.trainer.models.load import check_model_name, make_policy
    from rlkern.trainer.reward.functions import load_rewards
    from rlkern.trainer.rollout.check import check_model
    from rlkern.trainer.rollout.fitting import fitted
    from rlkern.trainer.rollout.text import stop_tokens
    from rlkern.trainer.rollout.turns import sampling_of
    from rlkern.trainer.tasks.registry import make_task

    device = resolve_device(settings.device)
    check_model_name(target.model)
    own, count = target.settings, settings.eval.items
    held = own.eval.items if own is not None and own.asked == settings.asked else count
    whole = settings.eval.model_copy(update={"items": held})
    task = make_task(settings.model_copy(update={"eval": whole}))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    policy = make_policy(
        target.model,
        alphabet=task.alphabet,
        seed=settings.seed,
        device=device,
        dtype=settings.dtype,
        chat=task.chat,
    )
    sampling = sampling_of(settings, task, stop_tokens(policy, task.stop))
    task = fitted(task, policy, settings, new=sampling.max_new_tokens)
    rewards = None if task.rows is None else load_rewards(settings, task)
    items = task.held_out[:count]
    check_model(policy, [item.prompt for item in items[:4]], settings, warn)
    return items, {
        mode: answer(
            policy,
            task,
            items,
            in_mode(sampling, mode),
            settings,
            samples=samples_in(settings, mode),
            rewards=rewards,
        )
        for mode in settings.eval.modes
    }


def _values(settings: Settings, found: dict[str, Answers]) -> dict[str, float]:
    """Returns each accuracy and its standard error, by name."""
    from rlkern.trainer.evaluate import standard_error

    rows = settings.data.train is not None or settings.has_own_task
    what = "reward" if rows else "accuracy"
    columns = {f"{what}_{mode}": answers.accuracy() for mode, answers in found.items()}
    if "sampled" in found:
        columns.update({f"pass@{k}": found["sampled"].pass_at(k) for k in settings.eval.pass_at})
    values: dict[str, float] = {}
    for name, column in columns.items():
        values[f"eval/{name}"] = column.nanmean().item()
        values[f"eval/{name}_error"] = standard_error(column)
    return values


def _about(target: Target, settings: Settings) -> dict[str, Any]:
    return {
        "model": target.model,
        "label": target.label,
        "task": settings.asked,
        "items": settings.eval.items,
        "samples": settings.eval.samples,
        "temperature": settings.rollout.temperature,
        "top_k": settings.rollout.top_k,
        "top_p": settings.rollout.top_p,
        "seed": settings.seed,
    }


def _print_own(target: Target, settings: Settings, values: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    from rlkern.trainer.show.display import measured

    table = Table(title=f"{target.label}: {settings.asked}", title_justify="left")
    table.add_column("")
    table.add_column("held out", justify="right")
    for name, value in measured(values):
        table.add_row(name, f"{value:.3f}")
    Console(highlight=False).print(table)


def _print(
    target: Target,
    settings: Settings,
    values: dict[str, float],
    items: list[Item],
    found: dict[str, Answers],
    show: int,
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlkern.runs.display import quoted
    from rlkern.trainer.show.completions import question

    console = Console(highlight=False)
    title = f"{target.label}: {settings.asked}, {len(items)} held-out items"
    table = Table(title=title, title_justify="left")
    for column, side in (("", "left"), ("mean", "right"), ("± standard error", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for name in (key for key in values if not key.endswith("_error")):
        label = name.removeprefix("eval/").replace("_", ", ")
        if name.endswith("_sampled"):
            label += f", {settings.eval.samples} for each"
        error = values.get(f"{name}_error")  # pairs have none
        table.add_row(label, f"{values[name]:.3f}", "" if error is None else f"{error:.3f}")
    console.print(table)
    mode, answers = next(iter(found.items()))
    samples = Table(title=f"{mode} answers", title_justify="left")
    for column in ("question", "completion", "right"):
        samples.add_column(column)
    for item, text, score in list(zip(items, answers.text, answers.score))[:show]:
        right = "yes" if score[0] >= 1 else f"no: {item.answer[:20]}" if item.answer else "no"
        asked = quoted(question(item, settings), _QUESTION)
        samples.add_row(Text(asked), Text(quoted(text[0], _COMPLETION)), Text(right))
    if show:
        console.print(samples)
