# SPDX-License-Identifier: Apache-2.0
"""Starts processes that talk over gloo, and collects what each of them returns."""

import datetime
import functools
import os
import pickle
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import rlkern
from rlkern.testing.cases import Case, make_batch
from rlkern.testing.conformance import applicable
from rlkern.testing.runs import RUNS

# No test depends on the machine's load: a process that fails ends the others, by mp.spawn.
PATIENCE = datetime.timedelta(hours=4)
ASKED = (
    ("policy_loss", torch.float32),
    ("token_logprob", torch.float32),
    ("policy_loss (in place)", torch.bfloat16),
    ("token_logprob", torch.bfloat16),
)


def _process(rank: int, ranks: int, function, folder: Path) -> None:
    torch.set_num_threads(1)
    # As conftest.py: a test sees an element that nobody writes.
    torch.use_deterministic_algorithms(True)
    address = f"file://{folder / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=ranks, timeout=PATIENCE
    )
    result = function(rank)
    (folder / f"rank{rank}").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def spawn(function, ranks: int, folder: Path, start: str = "spawn") -> list:
    """Returns what function(rank) returned in each of so many processes of one gloo group.

    start "fork" leaves them what is imported already.
    """
    arguments = ranks, function, folder
    mp.start_processes(_process, arguments, nprocs=ranks, start_method=start)
    return [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(ranks)]


def cuts(vocabulary: int, ranks: int) -> list[int]:
    """Returns where uneven slices of a vocabulary begin, and its end."""
    return [0, *{2: [vocabulary // 3 or 1], 3: [1, 1 + (vocabulary + 1) // 2]}[ranks], vocabulary]


def slice_of(case: Case, logits: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """Returns the logits a rank holds; where the case is a view, a view."""
    first, end = cuts(case.V, ranks)[rank : rank + 2]
    part = logits[..., first:end]
    return part if case.layout != "plain" else part.contiguous()


def sharded_run(operation: str, case: Case, dtype: torch.dtype, group: dist.ProcessGroup):
    """Returns the outputs of one of the conformance runs, the logits split over a group."""
    plain = rlkern.policy_loss, rlkern.token_logprob
    batch = make_batch(case, dtype)
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    batch.logits = slice_of(case, batch.logits, ranks, rank)
    rlkern.policy_loss, rlkern.token_logprob = (functools.partial(f, group=group) for f in plain)
    try:
        return {name: x.detach() for name, x in RUNS[operation](case, batch).items()}
    finally:
        rlkern.policy_loss, rlkern.token_logprob = plain


def sharded_runs(
    cases: tuple[Case, ...], backend: str, ranks: int
) -> list[tuple[str, Case, torch.dtype]]:
    """Returns what a backend is asked for on so many ranks: operation, case, dtype."""
    return [
        (operation, case, dtype)
        for case in cases
        for operation, dtype in (ASKED if backend == "cpu" else ASKED[:2])
        if ranks <= case.V and applicable(operation, case, dtype)
    ]


def key_of(ranks: int, backend: str, operation: str, case: Case, dtype: torch.dtype) -> tuple:
    """Returns the name of a result: a case itself cannot be hashed."""
    return ranks, backend, operation, case.name, dtype


def without_value_checks(function):
    """Returns what function returns when values are not looked at."""
    asked = os.environ.pop("RLKERN_CHECK_VALUES", None)
    try:
        return function()
    finally:
        if asked is not None:
            os.environ["RLKERN_CHECK_VALUES"] = asked
