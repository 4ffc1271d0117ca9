# SPDX-License-Identifier: Apache-2.0
"""LoRA through PEFT: adapters that are trained in place of a model's weights, and stored alone.

A folder with adapters names its base, the model they are laid over: smollm2, a directory, or one
relative to the folder itself, so that a run can be moved. The base alone is the model that the run
started from, so a reference costs no memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlkern.integrations.head import without_adapter
from rlkern.runs.errors import UserError
from rlkern.trainer.settings import Settings
from rlkern.trainer.settings.running import Lora

ADAPTER = "adapter_config.json"
BASE = "base"
BESIDE = f"../{BASE}"  # from a checkpoint of the run
_EVERY_LAYER = "all-linear"


def check_peft() -> None:
    """Raises UserError if PEFT is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        sentence = f"lora needs the package peft, from rlkern[train]: {error}"
        raise UserError(sentence) from error


def with_adapters(model: Any, asked: Lora, *, base: str, seed: int) -> Any:
    """Returns the model with fresh adapters, which add nothing yet; its own weights are frozen.

    `base` is what a checkpoint will name as the model that the adapters belong to. An adapter of a
    head that is tied to the embeddings changes the logits and leaves the embeddings as they are.
    """
    check_peft()
    import peft

    settings = peft.LoraConfig(
        r=asked.rank,
        lora_alpha=2 * asked.rank if asked.alpha is None else asked.alpha,  # type: ignore[arg-type]
        target_modules=targets(model, asked.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Any = peft.get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted.eval()


def targets(model: Any, asked: Sequence[str]) -> list[str]:
    """Returns the names of layers that get an adapter; Raises UserError for an unknown one."""
    from transformers.pytorch_utils import Conv1D

    linear = (torch.nn.Linear, Conv1D)
    body = {
        name.rsplit(".", 1)[-1]
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, linear)
    }
    there = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, linear)
    }
    names: set[str] = set()
    for name in asked:
        if name != _EVERY_LAYER and name not in there:
            raise UserError(
                f"lora.targets must be {_EVERY_LAYER} or names of the model's linear layers"
                f" ({', '.join(sorted(there))}), got {name!r}"
            )
        names |= body if name == _EVERY_LAYER else {name}
    return sorted(names)


def base_name(settings: Settings) -> str:
    """Returns what checkpoints of a run name as their base: a model that is found again under its
    own name, or BESIDE for one that the run itself keeps.

    >>> from rlkern.trainer.settings import of
    >>> base_name(of(model="tiny")), base_name(of(model="smollm2"))
    ('../base', 'smollm2')
    """
    name = settings.model
    if settings.sft or name == "tiny" or base_of(Path(name)) is not None:
        return BESIDE
    folder = Path(name)
    return str(folder.resolve()) if folder.is_dir() else name


def base_of(folder: Path) -> str | None:
    """Returns the model that the adapters in a folder belong to, None for a folder without any."""
    file = folder / ADAPTER
    if not file.is_file():
        return None
    try:
        name = json.loads(file.read_text())["base_model_name_or_path"]
        if not isinstance(name, str):
            raise TypeError(f"base_model_name_or_path is {name!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read as adapters with a base: {error}") from error
    beside = folder / name
    return str(beside.resolve()) if beside.is_dir() else name


def load_adapters(model: Any, folder: Path) -> Any:
    """Returns the model with the adapters that a folder holds, to be trained on."""
    check_peft()
    import peft

    try:
        found = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    except Exception as error:
        # safetensors and PEFT raise classes of their own.
        first = str(error).strip().split("\n")[0]
        raise UserError(f"the adapters in {folder} cannot be loaded: {first}") from error
    return found.eval()


def save_adapters(model: Any, folder: Path, state: dict | None) -> None:
    """Write adapters alone; `state` are the weights by name where the model's own are spread."""
    given = {} if state is None else {"state_dict": state}
    # PEFT would look up the base's vocabulary, over the network, to decide about embeddings.
    model.save_pretrained(folder, save_embedding_layers=False, **given)
    (folder / "README.md").unlink(missing_ok=True)  # a form for a hub


def merged(model: Any) -> Any:
    """Returns the model with its adapters added to the weights, as if it had been trained whole;
    Raises UserError for adapters that cannot be.

    A head tied to the embeddings is untied first where one of the two has an adapter, which the
    other has not.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    layer, wrapped = (
        without_adapter(head),
        (head, table) != tuple(map(without_adapter, (head, table))),
    )
    if wrapped and layer.weight is without_adapter(table).weight:
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
        model.config.tie_word_embeddings = False
    try:
        return model.merge_and_unload().requires_grad_(True)
    except (AttributeError, NotImplementedError, ValueError) as error:
        kinds = {
            str(getattr(x.peft_type, "value", x.peft_type)) for x in model.peft_config.values()
        }
        raise UserError(
            f"adapters of kind {', '.join(sorted(kinds))} cannot be added to the weights of a"
            f" {type(model.get_base_model()).__name__}: {str(error).splitlines()[0]}"
        ) from error


def is_adapted(model: Any) -> bool:
    """Returns True for a model with adapters of PEFT."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")
