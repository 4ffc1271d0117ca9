# SPDX-License-Identifier: Apache-2.0
"""Bytes each Triton kernel moves over the vocabulary, counted in the interpreter.

    python -m benchmarks.passes

One pass is one read or one write of the whole (N, V) tensor. Counted, not timed: no GPU needed.
Of the three passes of policy_loss over rows of several blocks the second read finds in the L2 cache
what other rows have left of it there: between two and three passes reach the memory (LOG.md).
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from rlkern.backends import triton as kernels  # noqa: E402
from rlkern.backends.eager.token_logprob import Softmax, Statistics, Upstream  # noqa: E402
from rlkern.backends.eager.token_objective import Objective, Rows  # noqa: E402
from rlkern.backends.triton._rows import launch_shape  # noqa: E402
from rlkern.testing.traffic import traffic  # noqa: E402

N, K, LONG, SHORT = 3, 64, 151936, 4096
NUMBERS = ((0.2, 0.2, 0.0, 0.0), 0.04, 0.01)
OBJECTIVE = Objective("ppo_clip", "token", "k3", *NUMBERS)
SEQUENCES = Objective("ppo_clip", "sequence", "k3", *NUMBERS)
# The second sweep begins with the block that the first ended with, which never left the registers.
KEPT_BLOCK = LONG % launch_shape(LONG, 2).block / LONG


class Row(NamedTuple):
    """One line of the table."""

    kernel: str
    loaded_bytes: int
    stored_bytes: int
    passes: float
    expected: float
    outside: int

    @property
    def agrees(self) -> bool:
        """Whether it moves what it should: the row's token may be read and written once more."""
        return not self.outside and 0 <= self.passes - self.expected <= 2 / SHORT


def measure(kernel: str, expected: float, V: int, run: Callable[..., object], share: float) -> Row:
    """Returns the traffic of one call on bfloat16 logits, of whose rows a share counts."""
    torch.manual_seed(0)
    logits = torch.randn(1, N, V).bfloat16()
    token, x = torch.randint(0, V, (1, N)), torch.full((1, N), -5.0)
    weight = (torch.arange(N) < share * N).float().reshape(1, N)
    with traffic() as moved:
        run(logits, token, x, weight)
    loaded, stored = moved.bytes_loaded(logits), moved.bytes_stored(logits)
    size = logits.numel() * logits.element_size()
    return Row(kernel, loaded, stored, (loaded + stored) / size, expected, moved.outside)


def forward(z: Tensor, token: Tensor, x: Tensor, weight: Tensor) -> None:
    """Runs token_logprob."""
    kernels.token_logprob(z, token, weight != 0, Softmax())


def backward(z: Tensor, token: Tensor, x: Tensor, weight: Tensor) -> None:
    """Runs the backward of token_logprob, in place."""
    kernels.token_logprob_backward(
        z, token, weight != 0, Softmax(), Statistics(x, x, x), Upstream(x, x, x), z
    )


def loss(z: Tensor, token: Tensor, x: Tensor, weight: Tensor) -> None:
    """Runs policy_loss with its gradient, in place."""
    kernels.policy_loss(z, token, Rows(x, weight, x, x, x), Softmax(), OBJECTIVE, z)


def kept_loss(z: Tensor, token: Tensor, x: Tensor, weight: Tensor) -> None:
    """Runs policy_loss with its gradient, in place, on kept sets of K tokens."""
    keep = (token[..., None] + 1 + torch.arange(K)) % z.shape[-1]
    kernels.policy_loss(z, token, Rows(x, weight, x, x, x), Softmax(keep=keep), OBJECTIVE, z)


def loss_alone(z: Tensor, token: Tensor, x: Tensor, weight: Tensor) -> None:
    """Runs policy_loss without a gradient."""
    kernels.policy_loss(z, token, Rows(x, weight, x, x, x), Softmax(), OBJECTIVE, None)


def sequence_loss(z: Tensor, token: Tensor, x: Tensor, weight: Tensor) -> None:
    """Runs GSPO, in place: the ratio of a sequence is known only after its last row."""
    mask = weight != 0
    scored = kernels.token_logprob(z, token, mask, Softmax())
    rows = Rows(x, weight, x, x, x)
    _, _, *slopes = kernels.token_objective(scored.logprob, scored.entropy, rows, None, SEQUENCES)
    kernels.token_logprob_backward(
        z, token, mask, Softmax(), scored.statistics, Upstream(*slopes), z
    )


def scale(factor: float) -> Callable[..., None]:
    """Returns the run of scale_ by a factor."""
    return lambda z, token, x, weight: kernels.scale_(z, torch.tensor(factor))


def rows() -> Iterator[Row]:
    """Yields the table."""
    yield measure("token_logprob", 1, LONG, forward, 1)
    yield measure("token_logprob, one row in 3 counts", 1 / 3, LONG, forward, 1 / 3)
    yield measure("token_logprob_backward", 2, LONG, backward, 1)
    yield measure("policy_loss and gradient", 3 - KEPT_BLOCK, LONG, loss, 1)
    yield measure("policy_loss and gradient, row on chip", 2, SHORT, loss, 1)
    yield measure("policy_loss and gradient, no row counts", 1, LONG, loss, 0)
    yield measure("policy_loss and gradient, 64 kept", 1 + 2 * K / LONG, LONG, kept_loss, 1)
    yield measure("policy_loss alone", 1, LONG, loss_alone, 1)
    yield measure("GSPO and gradient", 3, LONG, sequence_loss, 1)
    yield measure("scale_ by 0.5", 2, LONG, scale(0.5), 1)
    yield measure("scale_ by 1", 0, LONG, scale(1.0), 1)


def main() -> None:
    """Prints the table; exits with 1 if a kernel moves something else than it should."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    columns = ("kernel", "bytes loaded", "bytes stored", "passes", "expected")
    print("{:<40} {:>13} {:>13} {:>8} {:>9}".format(*columns))
    agree = True
    for row in rows():
        agree &= row.agrees
        note = "" if row.agrees else f"   WRONG ({row.outside} accesses out of bounds)"
        print(
            f"{row.kernel:<40} {row.loaded_bytes:>13,} {row.stored_bytes:>13,} "
            f"{row.passes:>8.4f} {row.expected:>9.4f}{note}"
        )
    sys.exit(not agree)


if __name__ == "__main__":
    main()
