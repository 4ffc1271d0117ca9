# SPDX-License-Identifier: Apache-2.0
"""Times launch shapes of the Triton kernels over the vocabulary against each other; needs a GPU.

    python -m benchmarks.gpu_shapes [V ...]

What stands in SHAPES of kernels/triton/_rows.py was chosen by this table.
"""

import argparse
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from benchmarks.gpu import Device, median_ms
from benchmarks.gpu_rows import Group, our_rows
from benchmarks.inputs import Inputs
from rlkern.backends.triton import _rows

ROWS = (
    "rlkern_logprob_and_entropy", "rlkern_logprob_forward_backward", "rlkern_policy_loss_in_place",
)  # fmt: skip
ELEMENTS = 8192 * 151936
COLUMNS_OF_A_THREAD, WARPS, STAGES = (8, 16, 32), (8, 16), (1, 2, 3)


def shapes(V: int) -> Iterator[_rows.Shape]:
    """Yields shapes for rows of this length: those of several blocks."""
    for columns, warps, stages in itertools.product(COLUMNS_OF_A_THREAD, WARPS, STAGES):
        block = columns * warps * 32
        if block < V:
            yield _rows.Shape(1 << 31, block, warps, stages)


def group_of(V: int, rows: int, device: str) -> Group:
    """Returns the rows that are timed."""
    inputs = Inputs(rows, V, torch.bfloat16, device)
    found = our_rows(inputs)
    return Group((rows, V), {name: found[name] for name in ROWS}, inputs.reset)


def compile_shape(V: int, device: str, shape: _rows.Shape) -> str | None:
    """Compiles the kernels of a shape for whoever comes next; returns why that is impossible."""
    _rows.SHAPES = (shape,)
    try:
        for row in group_of(V, 8, device).rows.values():
            row.call()
    except Exception as error:
        return f"{shape}: {str(error).splitlines()[0]}"
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line per shape: milliseconds of the log-prob, with its backward, and of the loss."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("V", nargs="*", type=int, default=[151936])
    device = Device.found()
    for V in parser.parse_args(argv).V:
        candidates = list(shapes(V))
        with multiprocessing.get_context("spawn").Pool() as pool:
            errors = pool.map(partial(compile_shape, V, device.kind), candidates, chunksize=1)
        group = group_of(V, ELEMENTS // V // 64 * 64, device.kind)
        print(f"{device.name}, {group.shape[0]} x {V} bfloat16, ms: {', '.join(ROWS)}")
        chosen = _rows.SHAPES
        for shape, error in zip(candidates, errors):
            if error:
                print(error)
                continue
            _rows.SHAPES = (shape,)
            ms = [median_ms(row, group, device.kind, 8) for row in group.rows.values()]
            print(f"{shape.block:>6} {shape.warps:>3} warps {shape.stages} stages"
                  + "".join(f"{x:>9.3f}" for x in ms), flush=True)  # fmt: skip
        _rows.SHAPES = chosen


if __name__ == "__main__":
    main()
