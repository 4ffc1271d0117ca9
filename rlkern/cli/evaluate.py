# SPDX-License-Identifier: Apache-2.0
"""`rlkern eval`: how often the answers of a run's model, or of any model, are right."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

from rlkern.cli.guard import guarded, silence_hub, underscored

if TYPE_CHECKING:
    from rlkern.trainer.config import Config
    from rlkern.trainer.evaluate import Answers
    from rlkern.trainer.run.target import Target
    from rlkern.trainer.tasks.task import Item

# Longest part of a prompt's end and of a completion in the table of samples.
_PROMPT, _COMPLETION = 40, 60


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern eval`."""
    return guarded("eval", lambda: _evaluate([underscored(word) for word in arguments]))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        from rlkern.trainer.errors import UserError

        raise UserError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rlkern eval",
        allow_abbrev=False,
        description="Accuracy and pass@k on held-out items. A run directory brings its own task and"
        " settings; what is given here goes over them.",
    )
    take = parser.add_argument
    take("target", help="run directory, checkpoint, model directory, tiny or smollm2")
    take("--checkpoint", default="best", help="of a run: best, newest or a step (default best)")
    take("--task", help="task, for a model that is of no run")
    take("--items", type=int, dest="eval_items", help="held-out items")
    take("--samples", type=int, dest="eval_samples", help="sampled answers to each item")
    take("--pass_at", type=_numbers, dest="eval_pass_at", help="values of k with commas")
    take("--modes", type=_words, dest="eval_modes", help="sampled, greedy or both with a comma")
    take("--temperature", type=float, help="sampling temperature")
    take("--top_k", type=int, help="sample among the k likeliest tokens; 0 among all")
    take("--top_p", type=float, help="sample among tokens of this total probability; 1 among all")
    take("--max_new_tokens", type=int, help="longest answer in tokens; 0 takes the task's own")
    take("--shots", type=int, help="solved examples before each question")
    take("--prompt_template", help="text that ends where the answer starts")
    take("--eval_batch", type=int, help="answers sampled at once")
    take("--device", choices=("cpu", "cuda", "auto"))
    take("--dtype", choices=("float32", "bfloat16", "mixed"))
    take("--threads", type=int, help="CPU threads; 0 leaves torch's own choice")
    take("--show", type=int, default=8, help="answers in the table of samples (default 8)")
    take("--json", action="store_true", help="print one line of JSON and nothing else")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _evaluate(arguments: list[str]) -> int:
    from rlkern.trainer.run.target import find_target, settings_for
    from rlkern.trainer.settings import validate

    try:
        given = vars(_parser().parse_args(arguments))
    except SystemExit:
        return 0
    name, checkpoint = given.pop("target"), given.pop("checkpoint")
    show, as_json = given.pop("show"), given.pop("json")
    target = find_target(name, checkpoint)
    changes = {key: value for key, value in given.items() if value is not None}
    config = settings_for(target, _with_pass_at(changes))
    _check_modes(config)
    validate(config)
    silence_hub()
    items, found = _answers(target, config)
    values = _values(config, found)
    if as_json:
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        print(json.dumps({**_about(target, config), **finite}))
    else:
        _print(target, config, values, items, found, show)
    return 0


def _with_pass_at(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the changes with a pass@k for the number of samples that was asked, if no k was."""
    if "eval_samples" in changes and "eval_pass_at" not in changes:
        changes = {**changes, "eval_pass_at": sorted({1, changes["eval_samples"]})}
    return changes


def _check_modes(config: Config) -> None:
    from rlkern.trainer.errors import UserError

    unknown = sorted(set(config.eval_modes) - {"sampled", "greedy"})
    if unknown:
        raise UserError(f"modes must be sampled or greedy, got {unknown[0]!r}")


def _answers(target: Target, config: Config) -> tuple[list[Item], dict[str, Answers]]:
    """Returns the held-out items and the answers to them in each mode."""
    import torch

    from rlkern.trainer.checked import task_of
    from rlkern.trainer.evaluate import answer, samplings
    from rlkern.trainer.models.policy import check_model_name, make_policy, resolve_device
    from rlkern.trainer.rollout.data import stop_tokens

    device = resolve_device(config.device)
    check_model_name(target.model)
    own = target.config
    held = own.eval_items if own is not None and own.task == config.task else config.eval_items
    task = task_of(dataclasses.replace(config, eval_items=held))
    if config.threads:
        torch.set_num_threads(config.threads)
    policy = make_policy(
        target.model, alphabet=task.alphabet, seed=config.seed, device=device, dtype=config.dtype
    )
    longest = config.max_new_tokens or task.max_new_tokens
    ways = samplings(config, stop_tokens(policy, task.stop), longest)
    items = task.held_out[: config.eval_items]
    counts = {"sampled": config.eval_samples, "greedy": 1}
    return items, {
        mode: answer(policy, task, items, config, sampling=ways[mode], samples=counts[mode])
        for mode in config.eval_modes
    }


def _values(config: Config, found: dict[str, Answers]) -> dict[str, float]:
    """Returns each accuracy and its standard error, by name."""
    from rlkern.trainer.evaluate import standard_error

    columns = {f"accuracy_{mode}": answers.accuracy() for mode, answers in found.items()}
    if "sampled" in found:
        columns.update({f"pass@{k}": found["sampled"].pass_at(k) for k in config.eval_pass_at})
    values: dict[str, float] = {}
    for name, column in columns.items():
        values[f"eval/{name}"] = column.mean().item()
        values[f"eval/{name}_error"] = standard_error(column)
    return values


def _about(target: Target, config: Config) -> dict[str, Any]:
    keys = "task eval_items eval_samples temperature top_k top_p seed".split()
    return {
        "model": target.model,
        "label": target.label,
        **{key: getattr(config, key) for key in keys},
    }


def _print(
    target: Target,
    config: Config,
    values: dict[str, float],
    items: list[Item],
    found: dict[str, Answers],
    show: int,
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    title = f"{target.label}: {config.task}, {len(items)} held-out items"
    table = Table(title=title, title_justify="left")
    for column, side in (("", "left"), ("mean", "right"), ("± standard error", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for name in (key for key in values if not key.endswith("_error")):
        label = name.removeprefix("eval/").replace("_", ", ")
        if name == "eval/accuracy_sampled":
            label += f", {config.eval_samples} for each"
        table.add_row(label, f"{values[name]:.3f}", f"{values[f'{name}_error']:.3f}")
    console.print(table)
    mode, answers = next(iter(found.items()))
    samples = Table(title=f"{mode} answers", title_justify="left")
    for column in ("prompt (its end)", "completion", "right"):
        samples.add_column(column)
    for item, text, score in list(zip(items, answers.text, answers.score))[:show]:
        right = "yes" if score[0] >= 1 else f"no: {item.answer[:20]}"
        prompt, completion = repr(item.prompt[-_PROMPT:]), repr(text[0][:_COMPLETION])
        samples.add_row(Text(prompt), Text(completion), Text(right))
    if show:
        console.print(samples)
