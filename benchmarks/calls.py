# SPDX-License-Identifier: Apache-2.0
"""Prints the processor time of a small loss and its gradient, rlkern, eager and compiled in turns.

    python -m benchmarks.calls [policy_loss | td_loss]

In turns and in processor time, since other work on the machine changes its speed from one second to
the next; the ratios are medians over the rounds, the microseconds those of the fastest.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import rlkern
from benchmarks import processes
from benchmarks.bench_calls import SIZES, Transitions
from rlkern.testing import baselines
from rlkern.testing.timed_inputs import Inputs

ROUNDS, CALLS = 100, 5
Runs = dict[str, Callable[[], None]]


def policy_loss(n: int, v: int) -> Runs:
    """Returns what runs the policy loss once, by who computes it; rlkern is first."""
    inputs, eager = Inputs(n, v, torch.float32), baselines.eager_grpo_loss
    compiled = torch.compile(eager)
    return {
        "rlkern": lambda: inputs.fused(inplace=False),
        "eager": lambda: inputs.other(eager),
        "torch_compile": lambda: inputs.other(compiled),
    }


def td_loss(n: int, v: int) -> Runs:
    """Returns the same of the temporal-difference loss."""
    transitions, eager = Transitions(n, v), baselines.eager_td_loss
    compiled = torch.compile(eager)
    return {
        "rlkern": lambda: transitions.learn(lambda *x: rlkern.td_loss(*x).loss),
        "eager": lambda: transitions.learn(eager),
        "torch_compile": lambda: transitions.learn(compiled),
    }


def in_turns(runs: Runs) -> dict[str, list[float]]:
    """Returns the microseconds of a call of each, one entry a round."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()  # what another has put out of the caches is none of its costs
            begin = time.process_time()
            for _ in range(CALLS):
                run()
            found[name].append((time.process_time() - begin) / CALLS * 1e6)
    return found


def line(op: str, size: str, found: dict[str, list[float]]) -> str:
    """Returns a line of the table.

    >>> line("x", "1x2", {"rlkern": [2.0, 4.0, 3.0], "eager": [4.0, 4.0, 6.0]})
    'x 1x2: rlkern 2 µs, eager 4 µs (2.00 x)'
    """
    ours, *others = found
    cells = [f"{ours} {min(found[ours]):.0f} µs"]
    for name in others:
        ratio = statistics.median(x / y for x, y in zip(found[name], found[ours], strict=True))
        cells.append(f"{name} {min(found[name]):.0f} µs ({ratio:.2f} x)")
    return f"{op} {size}: {', '.join(cells)}"


OPERATIONS = {"policy_loss": policy_loss, "td_loss": td_loss}


def main() -> None:
    """Prints a line for each size."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("operation", nargs="?", choices=OPERATIONS)
    chosen = parser.parse_args().operation
    for op in [chosen] if chosen else OPERATIONS:
        for size, shape in SIZES.items():
            torch._dynamo.reset()
            print(line(op, size, in_turns(OPERATIONS[op](*shape))), flush=True)


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
