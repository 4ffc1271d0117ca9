# SPDX-License-Identifier: Apache-2.0
"""Short runs of TRL's trainers on a random two-layer Llama, without a network."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlkern.integrations import patch, status

WORDS = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789"]
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)
STEPS = 4
PROMPTS = ["a b c", "d e", "f g h i", "j k l", "m n", "o p q r", "s t", "u v w"]
# Seconds, and what is drawn anew in each process.
NOT_COMPARED = ("time", "runtime", "per_second", "clip_ratio", "flos", "mfu", "memory")
TRAINERS = {
    "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
    "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
    "dpo": (trl.DPOTrainer, trl.DPOConfig),
    "kto": (trl.KTOTrainer, trl.KTOConfig),
    "sft": (trl.SFTTrainer, trl.SFTConfig),
}


def save_model(folder: Path) -> None:
    """Writes a random model and its tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=len(WORDS), num_attention_heads=2, max_position_embeddings=128,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # else every token is as likely as every other
        model.lm_head.weight.mul_(8)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def reward(completions: list[str], **_) -> list[float]:
    """Returns a number that differs between answers."""
    return [sum(map(ord, text)) % 7 / 7 for text in completions]


def data(kind: str) -> Dataset:
    """Returns the data set of a trainer."""
    answers = [f"{p.split()[-1]} x y" for p in PROMPTS]
    worse = [f"z {p.split()[0]}" for p in PROMPTS]
    if kind in ("grpo", "rloo"):
        return Dataset.from_dict({"prompt": PROMPTS})
    if kind == "dpo":
        return Dataset.from_dict({"prompt": PROMPTS, "chosen": answers, "rejected": worse})
    if kind == "kto":
        labels = [i % 2 == 0 for i in range(len(PROMPTS))]
        return Dataset.from_dict({"prompt": PROMPTS, "completion": answers, "label": labels})
    return Dataset.from_dict({"prompt": PROMPTS, "completion": answers})


def made(kind: str, model: Path, out: Path, *, trainer_type=None, **options):
    """Returns a trainer that has not begun, from a seed of its own. Options are the trainer's
    where it has one of the name, else its configuration's."""
    logging.disable(logging.WARNING)
    usual_type, config_type = TRAINERS[kind]
    settings = {
        "output_dir": str(out), "max_steps": STEPS, "per_device_train_batch_size": 4,
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "bf16": False,
        "seed": 1, "disable_tqdm": True, "learning_rate": 1e-3, "gradient_checkpointing": False,
    }  # fmt: skip
    given = {"train_dataset": data(kind), "peft_config": None}
    if kind in ("grpo", "rloo"):
        given["reward_funcs"] = reward
        settings |= {"num_generations": 4, "max_completion_length": 6}
    given |= {name: options.pop(name) for name in given.keys() & options.keys()}
    torch.manual_seed(0)
    return (trainer_type or usual_type)(
        model=str(model), args=config_type(**{**settings, **options}), **given
    )


def logged(trainer) -> list[dict[str, float]]:
    """Returns what a trainer logs in a few steps."""
    trainer.train()
    return [dict(entry) for entry in trainer.state.log_history]


def run(
    kind: str, model: Path, out: Path, *, patched: bool, **options
) -> tuple[list[dict[str, float]], int]:
    """Returns what a trainer logs in a few steps, and how often rlkern was called."""
    with patch("trl") if patched else contextlib.nullcontext():
        logs = logged(made(kind, model, out, **options))
        return logs, sum((status()[0].calls or {}).values())


def compared(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    """Returns the numbers of logs that two runs must share."""
    return [
        {k: v for k, v in entry.items() if not any(word in k for word in NOT_COMPARED)}
        for entry in logs
    ]
