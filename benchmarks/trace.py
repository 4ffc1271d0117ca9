# SPDX-License-Identifier: Apache-2.0
"""How many files a step of the trainer enters, and how often it changes file.

`python -m benchmarks.trace` takes a GRPO step with a KL term on the tiny model, counts every call
of a function of this project with sys.setprofile, and prints the files, the changes from one file
to another between two calls in a row, both also of the trainer alone, and which files are entered
most.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rlkern.trainer import build
from rlkern.trainer.processes.world import World
from rlkern.trainer.settings import of

ROOT = Path(__file__).resolve().parents[1]
# Where a step is read; what is behind an operation's door is read with the operation.
TRAINER = ("rlkern/trainer/", "rlkern/runs/", "rlkern/algorithms/")
_SHOWN = 12


class Trace(NamedTuple):
    """The files (relative to the root) and functions that were called, in their order."""

    calls: list[tuple[str, str]]

    @property
    def files(self) -> set[str]:
        """The files that were entered."""
        return {file for file, _ in self.calls}

    @property
    def changes(self) -> list[tuple[str, str]]:
        """The pairs of different files of two calls in a row."""
        files = [file for file, _ in self.calls]
        return [pair for pair in zip(files, files[1:]) if pair[0] != pair[1]]

    def within(self, *folders: str) -> "Trace":
        """Returns the calls of these folders, as if those of others were none."""
        return Trace([call for call in self.calls if call[0].startswith(folders)])


def traced_step() -> Trace:
    """Returns the calls of one step, the second of a run: the first one also imports."""
    settings = of(
        device="cpu",
        threads=1,
        sft=None,
        batch={"prompts": 4},
        rollout={"group_size": 4},
        coefficients={"kl_coef": 0.01},
        eval={"items": 8},
        reward={"degenerate_limit": 0},
    )
    calls: list[tuple[str, str]] = []

    def profile(frame, event, argument) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(f"{ROOT}/") and "site-packages" not in file:
            calls.append((file[len(str(ROOT)) + 1 :], frame.f_code.co_name))

    with tempfile.TemporaryDirectory() as folder:
        parts = build.load(settings, World.start("cpu"), None)
        run = build.begin(
            parts, Path(folder), None, say=lambda line: None, after_step=lambda *_: None
        )
        run.learner.step(run.updater, print)
        sys.setprofile(profile)
        try:
            run.learner.step(run.updater, print)
        finally:
            sys.setprofile(None)
    return Trace(calls)


def main() -> None:
    """Prints the counts, and the files that are entered most often from another one."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    trace = traced_step()
    print(f"{len(trace.calls)} calls of {len(set(trace.calls))} functions")
    print(f"{len(trace.files)} files, {len(trace.changes)} changes of file")
    own = trace.within(*TRAINER)
    print(f"{len(own.files)} files, {len(own.changes)} changes, an operation counted as one call")
    for file, count in Counter(after for _, after in trace.changes).most_common(_SHOWN):
        print(f"{count:4} {file}")


if __name__ == "__main__":
    main()
