# SPDX-License-Identifier: Apache-2.0
"""Models in folders in Hugging Face format, the local cache of the hub among them: only safetensors
are read, no code is run, nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rlkern.runs.errors import UserError

CONFIG = "config.json"


def folder_of(name: str, *files: str) -> Path | None:
    """Returns the folder of a model, which holds config.json or another of `files`: the folder that
    the name is, or that of a hub's id in the local cache; None if there is neither."""
    for file in (CONFIG, *files):
        if (Path(name) / file).is_file():
            return Path(name)
    return _cached(name, CONFIG, *files)


def _cached(name: str, *files: str) -> Path | None:
    """Returns the folder of a hub's id in the cache where HF_HUB_CACHE or HF_HOME says, at the
    revision that was downloaded as main."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in files:
        try:
            found = try_to_load_from_cache(name, file)
        except HFValidationError:
            return None  # no name that an id could have
        if isinstance(found, str):
            return Path(found).parent
    return None


def not_there(name: str) -> str:
    """Returns what is said of a model that is not found."""
    from huggingface_hub import constants

    known = (
        f"there is no model {name!r}: use tiny, smollm2, a run, a directory that holds {CONFIG}, or"
        f" a hub's id that the cache holds ({constants.HF_HUB_CACHE}); nothing is downloaded"
    )
    looks_like_one = name.count("/") == 1 and not Path(name).parent.is_dir()
    return f"{known} without `hf download {name}`" if looks_like_one else known


def read_model(directory: Path, kind: Any, dtype: str, *, what: str, hint: str) -> tuple[Any, Any]:
    """Returns (model, tokenizer) of a folder, `kind` being one of transformers' Auto classes.

    Raises one sentence, which calls the folder `what`, where they cannot be read or where a weight
    is missing; `hint` ends the latter.
    """
    weights = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    try:
        kind = _class_of(directory, kind)
        tokenizer = _tokenizer(directory, what)
        model, found = kind.from_pretrained(
            directory,
            dtype=weights,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{what} {str(directory)!r} cannot be loaded: {first}") from error
    except SafetensorError as error:
        raise UserError(
            f"{what} {str(directory)!r} has a file of weights that is cut off or broken, copy it"
            f" again: {error}"
        ) from error
    if found["missing_keys"]:
        raise UserError(
            f"{what} {str(directory)!r} must hold every weight, it lacks"
            f" {sorted(found['missing_keys'])[0]}{hint}"
        )
    for weight in model.parameters():
        # Loaded weights lie where they lay in the file; kernels round by where a row begins.
        weight.data = weight.data.clone()
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        # Padding is always masked by position, never by its id, so any id serves.
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _tokenizer(directory: Path, what: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        # The library of tokenizers raises a plain Exception for a file that is broken.
        first = str(error).strip().split("\n")[0].rstrip(": ")
        raise UserError(
            f"{what} {str(directory)!r} must hold a tokenizer next to its weights, as"
            f" tokenizer.save_pretrained writes it, but rlkern can read none: {first}"
        ) from error


def _class_of(directory: Path, kind: Any) -> Any:
    """Returns the class of the model in a folder, or an Auto class that knows it.

    A class that is part of a wrapper stores a configuration that no Auto class knows.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    named = (getattr(config, "architectures", None) or [""])[0]
    known = type(config) in kind._model_mapping or not named.endswith("ForCausalLM")
    return kind if known else getattr(transformers, named, kind)
