# SPDX-License-Identifier: Apache-2.0
"""The quick benchmark of `rlkern bench`: is rlkern right here, and how much faster than eager?

Each operation first has to agree with float64 on the cases of the conformance test, in the dtypes
in which it is timed; the loss from hidden states is the loss over the logits of its products. Times
are medians of torch.utils.benchmark, one after the other in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.benchmark import Timer

import rlkern
from rlkern.backends import backend_name
from rlkern.testing import baselines
from rlkern.testing.cases import CASES
from rlkern.testing.conformance import Comparison, compare
from rlkern.testing.timed_inputs import Inputs, LinearInputs, products_are_native

# {device type: rows × vocabulary, rows × hidden × vocabulary, sequences × steps, rewards}
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {
        "logits": (256, 151936), "linear": (64, 896, 151936), "scan": (512, 4096), "group": 65536,
    },
    "cuda": {
        "logits": (8192, 151936), "linear": (4096, 4096, 131072), "scan": (8192, 2048),
        "group": 65536,
    },
}  # fmt: skip
# What a smoke test asks for: whether every line can be printed.
SMALL: dict[str, Any] = {
    "logits": (16, 130), "linear": (16, 8, 130), "scan": (4, 16), "group": 64,
}  # fmt: skip
JUDGED = ("characters", "all_terms", "garbage_under_mask")
# {operation: the dtypes in which it has to be right}
DTYPES = {
    "policy_loss": (torch.bfloat16, torch.float32),
    "token_logprob": (torch.bfloat16, torch.float32),
    "gae": (torch.float32,),
    "group_advantage": (torch.float32,),
}
# Reads reward, value and mask, writes advantage and target.
_GAE_BYTES = 17


class Timing(NamedTuple):
    """Milliseconds of a call: the median, and between what a fifth and four fifths of calls lie."""

    median: float
    low: float
    high: float


class Measured(NamedTuple):
    """An operation beside eager PyTorch, and the bytes that it cannot avoid to move."""

    operation: str
    size: str
    eager: Timing
    ours: Timing
    bytes: int

    @property
    def ratio(self) -> float:
        """How many times longer eager takes."""
        return self.eager.median / self.ours.median

    @property
    def gigabytes(self) -> float:
        """Gigabytes a second of what cannot be avoided."""
        return self.bytes / self.ours.median / 1e6


def timed(call: Callable[[], object], seconds: float) -> Timing:
    """Returns the time of a call, measured for about so many seconds after one call."""
    call()
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    found = torch.tensor(timer.blocked_autorange(min_run_time=seconds).times).double() * 1e3
    shares = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    return Timing(*found.quantile(shares).tolist())


def judged(device: str) -> Iterator[tuple[str, Comparison]]:
    """Yields (operation, its comparison with float64) of the operations that are timed."""
    for case in CASES:
        if case.name in JUDGED:
            for operation, dtypes in DTYPES.items():
                for dtype in dtypes:
                    backend = backend_name(operation, device, dtype)
                    yield operation, compare(operation, case, backend, dtype, device)


def copy(size: int, device: str, seconds: float) -> float:
    """Returns the gigabytes a second that reading and writing `size` bytes reach."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / timed(lambda: target.copy_(source), seconds).median / 1e6


def measured(device: str, sizes: dict[str, Any], seconds: float) -> Iterator[Measured]:
    """Yields the lines of the table, the fused losses first."""
    n, v = sizes["logits"]
    yield from _losses(Inputs(n, v, torch.bfloat16, device), f"{n} × {v} bfloat16", seconds)
    yield _head(device, sizes["linear"], seconds)
    yield _gae(device, sizes["scan"], seconds)
    yield _groups(device, sizes["group"], seconds)


def _head(device: str, size: tuple[int, int, int], seconds: float) -> Measured:
    native = products_are_native(torch.bfloat16, device)
    dtype = torch.bfloat16 if native else torch.float32
    inputs = LinearInputs(*size, device, dtype)
    eager = timed(lambda: _eager_linear(inputs), seconds)
    ours = timed(lambda: _linear(inputs), seconds)
    name = " × ".join(map(str, size)) + f" {str(dtype).removeprefix('torch.')}"
    moved = 2 * inputs.head.numel() * inputs.head.element_size()  # the head and its gradient
    return Measured("linear_policy_loss, loss and gradients", name, eager, ours, moved)


def _losses(inputs: Inputs, size: str, seconds: float) -> Iterator[Measured]:
    stored = inputs.logits.numel() * inputs.logits.element_size()
    eager = timed(lambda: inputs.other(baselines.eager_grpo_loss), seconds)
    ours = timed(lambda: inputs.fused(inplace=False), seconds)
    yield Measured("policy_loss, loss and gradient", size, eager, ours, 2 * stored)
    rows = (inputs.logits, inputs.token)
    eager = timed(lambda: baselines.eager_logprob_and_entropy(*rows), seconds)
    ours = timed(lambda: rlkern.token_logprob(*rows), seconds)
    yield Measured("token_logprob, with entropy", size, eager, ours, stored)


def _linear(x: LinearInputs) -> None:
    x.hidden.grad = x.head.grad = None
    rlkern.linear_policy_loss(
        x.hidden, x.head, x.token, x.advantage, x.mask, old_logprob=x.old, ref_logprob=x.ref,
        weight=x.weight, algorithm="grpo", kl_coef=0.04,
    ).loss.backward()  # fmt: skip


def _eager_linear(x: LinearInputs) -> None:
    x.hidden.grad = x.head.grad = None
    logits = torch.nn.functional.linear(x.hidden, x.head)
    rows = (x.token, x.advantage, x.weight, x.old, x.ref)
    baselines.eager_grpo_loss(logits, *rows).backward()


def _gae(device: str, shape: tuple[int, int], seconds: float) -> Measured:
    random = torch.Generator(device).manual_seed(0)
    reward, value = torch.randn(2, *shape, generator=random, device=device)
    mask = torch.ones_like(reward, dtype=torch.bool)
    eager = timed(lambda: baselines.python_loop_gae(reward, value, 0.99, 0.95), seconds)
    ours = timed(lambda: rlkern.gae(reward, value, mask, discount=0.99, gae_lambda=0.95), seconds)
    size = f"{shape[0]} × {shape[1]} float32"
    return Measured("gae (eager: a loop)", size, eager, ours, _GAE_BYTES * reward.numel())


def _groups(device: str, count: int, seconds: float) -> Measured:
    reward = torch.rand(count, generator=torch.Generator().manual_seed(0)).to(device)
    group = torch.arange(count, device=device) // 8

    def eager() -> None:
        with rlkern.use_backend("eager"):
            rlkern.group_advantage(reward, group)

    ours = timed(lambda: rlkern.group_advantage(reward, group), seconds)
    size, moved = f"{count} float32", 16 * count  # a reward, its group of 8 bytes, an advantage
    return Measured("group_advantage, groups of 8", size, timed(eager, seconds), ours, moved)
