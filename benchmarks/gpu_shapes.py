# SPDX-License-Identifier: Apache-2.0
"""Times sizes of the Triton kernels' programs against each other; needs a GPU.

    python -m benchmarks.gpu_shapes [V ...]

WARPS and BYTES_OF_A_THREAD of kernels/triton/_rows.py were chosen by this table.
"""

import argparse
import itertools
import multiprocessing
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks import processes
from benchmarks.gpu import Device, median_ms
from benchmarks.gpu_rows import Group, our_rows
from rlkern.backends.triton import _rows
from rlkern.testing.timed_inputs import Inputs

ROWS = (
    "rlkern_logprob_and_entropy", "rlkern_logprob_forward_backward", "rlkern_policy_loss_in_place",
)  # fmt: skip
ELEMENTS = 8192 * 151936
CHOICES = tuple(itertools.product((16, 32, 64, 128), (4, 8, 16)))


def choose(choice: tuple[int, int]) -> None:
    """Makes the kernels' programs have so many bytes on their way in a thread, and warps."""
    _rows.BYTES_OF_A_THREAD, _rows.WARPS = choice


def group_of(V: int, rows: int, device: str) -> Group:
    """Returns the rows that are timed."""
    inputs = Inputs(rows, V, torch.bfloat16, device)
    found = our_rows(inputs)
    return Group((rows, V), {name: found[name] for name in ROWS}, inputs.reset)


def compile_choice(V: int, device: str, choice: tuple[int, int]) -> str | None:
    """Compiles the kernels of a choice for whoever comes next; returns why that is impossible."""
    choose(choice)
    try:
        for row in group_of(V, 8, device).rows.values():
            row.call()
    except Exception as error:
        return f"{choice}: {str(error).splitlines()[0]}"
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line per choice: ms of the log-prob, of it with its backward, and of the loss."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("V", nargs="*", type=int, default=[151936])
    device = Device.found()
    for V in parser.parse_args(argv).V:
        with multiprocessing.get_context("spawn").Pool() as pool:
            errors = pool.map(partial(compile_choice, V, device.kind), CHOICES, chunksize=1)
        group = group_of(V, ELEMENTS // V // 64 * 64, device.kind)
        print(f"{device.name}, {group.shape[0]} x {V} bfloat16, ms: {', '.join(ROWS)}")
        for choice, error in zip(CHOICES, errors):
            if error:
                print(error)
                continue
            choose(choice)
            ms = [median_ms(row, group, device.kind, 8) for row in group.rows.values()]
            print(f"{choice[0]:>4} bytes {choice[1]:>3} warps" + "".join(f"{x:>9.3f}" for x in ms),
                  flush=True)  # fmt: skip
        del group


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
