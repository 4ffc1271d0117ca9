# SPDX-License-Identifier: Apache-2.0
"""Processes that are forked from one that has imported what takes long to import, but not rlkern,
and that find the rlkern of a tree before any other.
"""

import compileall
import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Tests are compiled once as they are, not rewritten in each child for messages that nobody reads.
PYTEST = ("--assert=plain", "-q", "--no-header", "--no-summary", "-p", "no:cacheprovider")
WARM = ("torch", "torch._dynamo", "pytest", "hypothesis", "coverage", "matplotlib.pyplot", "peft",
        "torch.utils.tensorboard", "transformers.models.llama.modeling_llama")  # fmt: skip


def environment_of(tree: Path) -> dict[str, str]:
    """Returns the environment in which Python finds the rlkern of a tree before any other.

    Without Triton's interpreter and without torch.compile: both take most of the time, and no fault
    is planted in what only they run.
    """
    path = os.pathsep.join([str(tree), str(tree / "tests"), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "PYTHONPATH": path.rstrip(os.pathsep),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "0",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",  # read when it is imported, which is before the tests set it
    }


def warm(tree: Path) -> None:
    """Imports and compiles what every child would import and compile."""
    os.environ.update(environment_of(tree))
    for name in ("rlkern", "tests"):
        compileall.compile_dir(tree / name, quiet=2)
    for name in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _child(tree: Path, call: Callable[[], int], log: Path) -> None:
    """Does what is asked for in the tree; ends this process with the exit code it returns."""
    os.setsid()
    # A worker of a pool may start no process and has a handler of its own, but not so a test.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    os.chdir(tree)
    os.environ.update(environment_of(tree))
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(tree), str(tree / "tests")]
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 70
    try:
        code = call()
    finally:
        os._exit(code)


def forked(tree: Path, call: Callable[[], int], log: Path, limit: float) -> int:
    """Returns the exit code of a call in a child, minus a signal's number if one ended it, as it
    does after so many seconds; what the child says is in the log."""
    start, child, status = time.monotonic(), os.fork(), None
    if child == 0:
        _child(tree, call, log)
    try:
        while status is None:
            found, code = os.waitpid(child, os.WNOHANG)
            if found:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() - start > limit:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.02)
    finally:
        if status is None:
            os.killpg(child, signal.SIGKILL)
    return status
