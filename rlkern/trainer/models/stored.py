# SPDX-License-Identifier: Apache-2.0
"""Models in folders in Hugging Face format: only safetensors are read, no code is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlkern.runs.errors import UserError


def read_model(directory: Path, kind: Any, dtype: str, *, what: str, hint: str) -> tuple[Any, Any]:
    """Returns (model, tokenizer) of a folder, `kind` being one of transformers' Auto classes.

    Raises one sentence, which calls the folder `what`, where they cannot be read or where a weight
    is missing; `hint` ends the latter.
    """
    from transformers import AutoTokenizer

    weights = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model, found = _class_of(directory, kind).from_pretrained(
            directory,
            dtype=weights,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{what} {str(directory)!r} cannot be loaded: {first}") from error
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


def _class_of(directory: Path, kind: Any) -> Any:
    """Returns the class of the model in a folder, or an Auto class that knows it.

    A class that is part of a wrapper stores a configuration that no Auto class knows.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    named = (getattr(config, "architectures", None) or [""])[0]
    known = type(config) in kind._model_mapping or not named.endswith("ForCausalLM")
    return kind if known else getattr(transformers, named, kind)
