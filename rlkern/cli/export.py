# SPDX-License-Identifier: Apache-2.0
"""`rlkern export`: the model of a run as a plain folder of transformers, with a model card."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING

from rlkern.cli.guard import guarded, silence_hub
from rlkern.cli.parser import Parser, given
from rlkern.runs.folder import all_checkpoints

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from rlkern.cli.target import Target
    from rlkern.trainer.models.policy import Policy
    from rlkern.trainer.settings import Settings
    from rlkern.trainer.show.card import Card

DTYPES = ("float32", "bfloat16", "float16")
_CURVES = "curves.png"


def run(arguments: list[str]) -> int:
    """Returns the exit code of `rlkern export`."""
    return guarded("export", lambda: _export(arguments))


def _parser() -> Parser:
    parser = Parser(
        prog="rlkern export",
        description="Write the model of a run as a plain folder of transformers: weights, with"
        " adapters added to them, tokenizer, chat template, generation config, curves and a model"
        " card. A reward model is written as a sequence classifier.",
    )
    take = parser.add_argument
    take("run", help="run directory, or one of its checkpoints")
    take("folder", help="folder to write, which must be empty or not there")
    take("--checkpoint", metavar="X", help="best, newest or a step (default best)")
    take("--dtype", metavar="X", help=f"of the weights, {', '.join(DTYPES)} (default: the run's)")
    return parser


def _export(arguments: list[str]) -> int:
    flags = given(_parser(), arguments)
    if flags is None:
        return 0
    from safetensors import SafetensorError

    from rlkern.cli.target import find_target
    from rlkern.runs.errors import UserError
    from rlkern.runs.files import publish

    dtype, folder = flags["dtype"], Path(flags["folder"])
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} must be a folder that is empty or not there yet, it is neither")
    target = find_target(flags["run"], flags["checkpoint"], lambda *_: None)
    if target.settings is None:
        raise UserError(f"{flags['run']} must be a run directory or a checkpoint of one")
    silence_hub()
    policy = _loaded(target, target.settings, dtype)
    card = _card(target, target.settings, folder, policy)

    def fill(partial: Path) -> None:
        policy.save(partial)
        _write_curves(_run_of(target), card, partial)
        (partial / "README.md").write_text(card.text(), encoding="utf-8")

    try:
        publish(folder.resolve(), fill)
    except (OSError, SafetensorError) as error:
        # Not the error itself: it names the folder that is filled before it becomes this one.
        why = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"{folder} cannot be written: {why}") from error
    print(f"{target.label} is in {folder}")
    return 0


def _run_of(target: Target) -> Path:
    return Path(target.model).resolve().parent


def _loaded(target: Target, settings: Settings, dtype: str | None) -> Policy:
    """Returns the model of a checkpoint as it is written: adapters in the weights, and in the
    generation config what ends an answer and how the run sampled."""
    import torch

    from rlkern.trainer.models.load import make_policy
    from rlkern.trainer.reward.model import load_scorer

    cpu = torch.device("cpu")
    if settings.declared.trains != "policy":
        policy = load_scorer(Path(target.model), device=cpu, dtype=settings.dtype)
    else:
        policy = make_policy(target.model, alphabet="", seed=0, device=cpu, dtype=settings.dtype)
        policy.model.generation_config = _generation(policy, settings)
    if dtype is not None:
        policy.model.to(getattr(torch, dtype))
    return policy


def _generation(policy: Policy, settings: Settings) -> GenerationConfig:
    from transformers import GenerationConfig

    from rlkern.trainer.rollout.text import end_tokens

    ends, tokenizer, rollout = sorted(end_tokens(policy)), policy.tokenizer, settings.rollout
    return GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0],
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
    )


def _card(target: Target, settings: Settings, folder: Path, policy: Policy) -> Card:
    from rlkern.runs import best
    from rlkern.runs.logs import read_metrics
    from rlkern.trainer.run import checkpoint
    from rlkern.trainer.show.card import Card

    place, run = Path(target.model).resolve(), _run_of(target)
    noted = best.read(run) if (place / best.NOTE).is_file() else None
    # What the run learned from is in every checkpoint that it can be resumed from.
    saved = all_checkpoints(run)
    data = checkpoint.read_settings(saved[-1])[0]["progress"].get("data", {}) if saved else {}
    packages = ("rlkern", "torch", "transformers", *(["peft"] if settings.lora else []))
    return Card(
        name=run.name,
        folder=folder.name,
        settings=settings,
        step=noted["step"] if noted else int(place.name.rpartition("-")[2]),
        lines=read_metrics(run),
        data=data,
        versions={**{each: _version(each) for each in packages}, "python": python_version()},
        notes=_notes(settings, policy),
    )


def _version(package: str) -> str:
    import rlkern

    return rlkern.__version__ if package == "rlkern" else metadata.version(package)


def _notes(settings: Settings, policy: Policy) -> list[str]:
    """Returns what somebody who uses the model has to know of it."""
    from rlkern.trainer.tasks.registry import make_task

    tokenizer = policy.tokenizer
    if settings.declared.trains != "policy":
        same = tokenizer.pad_token_id == tokenizer.eos_token_id
        end = f"An answer is scored at `{tokenizer.eos_token}` behind it."
        more = " This token pads too: read the score by position, not by the id of padding."
        return [end + (more if same else "")]
    stop = settings.data.stop if settings.data.train is not None else make_task(settings).stop
    if not stop:
        return []
    return [
        f"In the run an answer also ended at the text `{stop!r}`: give `generate`"
        f" `stop_strings=[{stop!r}]` and the tokenizer."
    ]


def _write_curves(run: Path, card: Card, folder: Path) -> None:
    """Copies the curves of a run, or draws those of one that has not ended."""
    from rlkern.trainer.show.plot import plot_curves

    if (run / _CURVES).is_file():
        shutil.copyfile(run / _CURVES, folder / _CURVES)
    elif card.lines:
        plot_curves(list(card.lines), folder / _CURVES, title=card.name)
