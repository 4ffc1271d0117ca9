# SPDX-License-Identifier: Apache-2.0
"""Measures the peak memory of the loss against tokens, each case in a process of its own.

    python -m benchmarks.memory [--small]

Loss and gradients of GRPO from hidden states and a head of Qwen2.5-0.5B's sizes in float32: the
most resident memory, less what was there before and less the gradients. Rows take the place of the
earlier ones in benchmarks/results/memory.jsonl, from which docs/benchmarks.md has its plot, but not
with --small, nor those of a tree with changes that are not committed. Needs Linux, whose kernel
forgets a peak on request.
"""

import argparse
import re
import sys
from pathlib import Path

import torch

from benchmarks import processes, readme, report
from benchmarks.page import MEMORY

TOKENS, SMALL = (64, 128, 256, 512, 1024), (8, 16)
ROWS = ("rlkern", "eager")


def status(name: str) -> int:
    """Returns KiB of this process by a name of /proc/self/status."""
    found = re.search(name + r":\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def extra_mib(row: str, tokens: int, small: bool) -> float:
    """Returns the peak beyond inputs and gradients of a row in this process."""
    from benchmarks import bench_linear_policy_loss as linear

    if small:
        linear.H, linear.V = 16, 1000
    inputs = linear.LinearInputs(tokens, torch.float32)
    run = {"rlkern": inputs.fused, "eager": lambda: inputs.by_logits(linear.eager_loss)}[row]
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run()
    gradients = sum(x.numel() * x.element_size() for x in (inputs.hidden, inputs.head))
    return (status("VmHWM") - before) / 1024 - gradients / 2**20


def measured(row: str, tokens: int, small: bool) -> dict[str, object]:
    """Returns a row of the results."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", row, str(tokens)]
    found = processes.said(command + ["--small"] * small)
    return {"row": row, "tokens": tokens, "extra_mib": round(found, 1)}


def main() -> int:
    """Returns 0 after all cases ran; 1 if they could not be recorded."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        row, tokens = given.one
        print(extra_mib(row, int(tokens), given.small))
        return 0
    where, lines = report.machine(), []
    if not given.small and (why := report.forced() or report.refusal(where)):
        print(f"{why}, or ask for --small", file=sys.stderr)
        return 1
    for tokens in SMALL if given.small else TOKENS:
        for row in ROWS:
            try:
                lines.append(measured(row, tokens, given.small))
            except RuntimeError as error:
                print(f"{row}, {tokens} tokens: {error}", file=sys.stderr)
                return 1
            print(lines[-1], flush=True)
    if given.small:
        return 0
    report.write([{**where, **line} for line in lines], report.RESULTS / MEMORY)
    try:
        readme.write()
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return 0


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
