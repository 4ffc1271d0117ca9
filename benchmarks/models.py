# SPDX-License-Identifier: Apache-2.0
"""What the loss of a model by name needs, computed from its hidden size and vocabulary."""

from typing import NamedTuple

import torch

from benchmarks.tables import markdown, number
from rlkern.ops._linear_arguments import default_wave

TOKENS = 8192
MEMORIES_GIB = (24, 80)
BFLOAT16, FLOAT32 = 2, 4


class Model(NamedTuple):
    """A model's sizes as its public config.json has them: hidden_size and vocab_size."""

    name: str
    hidden: int
    vocabulary: int

    @property
    def row_bytes(self) -> int:
        """Bytes of the logits of a token in bfloat16."""
        return BFLOAT16 * self.vocabulary

    @property
    def eager_bytes(self) -> int:
        """Bytes beside weights and their gradients that the eager loss needs for TOKENS tokens: the
        logits, and three copies in float32 while log-probabilities are differentiated."""
        return TOKENS * (BFLOAT16 + 3 * FLOAT32) * self.vocabulary

    @property
    def linear_bytes(self) -> int:
        """Bytes beside weights and their gradients that the fused linear needs for TOKENS tokens on
        a device: a wave of logits, whose gradient takes its place, and the gradient of the head in
        float32 where it is summed over waves."""
        head = torch.empty(self.vocabulary, self.hidden, dtype=torch.bfloat16, device="meta")
        wave = min(default_wave(head.requires_grad_(), TOKENS), TOKENS)
        summed = FLOAT32 * head.numel() if wave < TOKENS else 0
        return wave * self.row_bytes + summed

    def longest_row(self, gib: int) -> int:
        """Returns at how many tokens bfloat16 logits and their gradient alone fill a memory."""
        return gib * 2**30 // (2 * self.row_bytes)


MODELS = (
    Model("Qwen3-0.6B", 1024, 151936),
    Model("Llama-3.1-8B", 4096, 128256),
    Model("Gemma-3-4B", 2560, 262208),
    Model("gpt-oss-20b", 2880, 201088),
    Model("DeepSeek-V3", 7168, 129280),
)


def table() -> str:
    """Returns a line for each model."""
    rows = [
        [m.name, f"{m.hidden} / {m.vocabulary}", f"{m.row_bytes // 1000}",
         gib(m.eager_bytes), gib(m.linear_bytes), *(f"{m.longest_row(x)}" for x in MEMORIES_GIB)]
        for m in MODELS
    ]  # fmt: skip
    head = ["model", "hidden / vocabulary", "kB of logits a token",
            f"eager, {TOKENS} tokens, GiB", f"fused linear, {TOKENS} tokens, GiB",
            *(f"tokens that fill {x} GiB" for x in MEMORIES_GIB)]  # fmt: skip
    return markdown(head, rows)


def gib(count: int) -> str:
    """Returns bytes as GiB.

    >>> gib(3 * 2**29)
    '1.5'
    """
    return number(count / 2**30)
