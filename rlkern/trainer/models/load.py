# SPDX-License-Identifier: Apache-2.0
"""Where policies come from: made here, unpacked from a package, or read from a folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from rlkern.runs.errors import UserError
from rlkern.trainer.models import lora, smollm2
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.models.stored import folder_of, not_there, read_model

_Found = TypeVar("_Found")


def check_model_name(name: str) -> None:
    """Raises UserError, before any work, for a model that is not there."""
    if name == "smollm2":
        smollm2.check_available()
    elif name != "tiny":
        folder = _folder_of(name)
        base = lora.base_of(folder)
        if base is not None:
            lora.check_peft()
            _of_adapters(folder, base, check_model_name)


def make_policy(
    name: str,
    *,
    alphabet: str,
    seed: int,
    device: torch.device,
    dtype: str,
    chat: bool = False,
) -> Policy:
    """Returns the policy called `name`: fresh for tiny, with a chat template if `chat`, else with
    its stored weights, to which stored adapters are added."""
    check_model_name(name)
    if name == "tiny":
        weights = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        model, tokenizer = tiny(alphabet, seed, chat=chat)
        return Policy(model.to(device, weights).eval(), tokenizer, device, mixed=dtype == "mixed")
    policy = load_policy(_folder_of(name), device=device, dtype=dtype)
    if lora.is_adapted(policy.model):
        return dataclasses.replace(policy, model=lora.merged(policy.model))
    return policy


def _folder_of(name: str) -> Path:
    """Returns where a model's files are; Raises UserError for one that is not there."""
    if name == "smollm2":
        return smollm2.converted()
    found = folder_of(name, lora.ADAPTER)
    if found is None:
        raise UserError(not_there(name))
    return found


def _of_adapters(folder: Path, base: str, find: Callable[[str], _Found]) -> _Found:
    """Returns what is found of the model that adapters belong to; Raises UserError, which says
    where its place is written, if it is not there."""
    try:
        return find(base)
    except UserError as error:
        raise UserError(
            f"{folder} holds adapters, whose model is not where base_model_name_or_path of"
            f" {folder / lora.ADAPTER} says: {error}"
        ) from error


def load_policy(directory: Path, *, device: torch.device, dtype: str) -> Policy:
    """Returns the policy stored in a folder in Hugging Face format, with its adapters if it has
    any; only safetensors are read, no code is run.
    """
    base = lora.base_of(directory)
    if base is not None:
        place = _of_adapters(directory, base, _folder_of)
        policy = load_policy(place, device=device, dtype=dtype)
        return dataclasses.replace(policy, model=lora.load_adapters(policy.model, directory))
    from transformers import AutoModelForCausalLM

    hint = "; a reward model belongs under reward"
    model, tokenizer = read_model(directory, AutoModelForCausalLM, dtype, what="model", hint=hint)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model {str(directory)!r}: its tokenizer must name an eos token, it has none"
        )
    model = torch.nn.Module.to(model, device).eval()
    return Policy(model, tokenizer, device, mixed=dtype == "mixed")


def train_last_layers(model: Any, count: int) -> None:
    """Freezes all but the last `count` transformer layers; 0 leaves every weight trainable."""
    if count == 0:
        return
    layers = getattr(model.get_decoder(), "layers", ())
    if count > len(layers):
        raise UserError(
            f"optimizer.train_layers must be at most the model's {len(layers)} layers, got {count}"
        )
    model.requires_grad_(False)
    # What a reward model has in place of the head is new and has to learn.
    for trained in (*layers[-count:], *filter(None, [getattr(model, "score", None)])):
        trained.requires_grad_(True)


def recomputing(policy: Policy) -> Policy:
    """Returns the policy with layers that compute their activations again in the backward pass."""
    dropout = {key: x for key, x in policy.model.config.to_dict().items() if "drop" in key and x}
    if dropout:
        raise UserError(
            "memory.gradient_checkpointing recomputes layers in training mode, so the model must"
            f" have no dropout, got {dropout}"
        )

    def contexts() -> tuple:
        return contextlib.nullcontext(), policy.attention()

    model, kwargs = policy.model, {"use_reentrant": False, "context_fn": contexts}
    try:
        if hasattr(model, "activation_checkpointing_enable"):  # transformers since 5.23
            model.activation_checkpointing_enable(kwargs)
        else:
            model.gradient_checkpointing_enable(kwargs)
    except ValueError as error:
        raise UserError(f"memory.gradient_checkpointing: {error}") from error
    return dataclasses.replace(policy, recompute=True)


def export_merged(folder: Path, target: Path) -> None:
    """Write the model of a folder with adapters as a whole one, in Hugging Face format."""
    cpu = torch.device("cpu")
    make_policy(str(folder), alphabet="", seed=0, device=cpu, dtype="float32").save(target)


def tiny(alphabet: str, seed: int, *, chat: bool = False) -> tuple[Any, Any]:
    """Returns a 0.4M-parameter Llama-shaped character model with random weights, and
    its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = (chat_tokenizer if chat else character_tokenizer)(alphabet)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), tokenizer


def character_tokenizer(alphabet: str) -> Any:
    """Returns a tokenizer with one token for each character of the alphabet, plus pad, eos and
    unknown.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *dict.fromkeys(alphabet)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def chat_tokenizer(alphabet: str) -> Any:
    """Returns a character tokenizer with a chat template: one token before each message, which says
    whose it is, and the end of text behind it.
    """
    tokenizer = character_tokenizer(alphabet)
    roles = [f"<{role}>" for role in ("system", "user", "assistant", "tool")]
    tokenizer.add_special_tokens({"additional_special_tokens": roles})
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer
