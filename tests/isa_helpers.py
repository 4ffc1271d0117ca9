# SPDX-License-Identifier: Apache-2.0
"""Runs operations of the C++ backend with another instruction set, in a process of its own.

The extension chooses once per process, by RLKERN_ISA.
"""

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor

import torch

from rlkern.backends import _load
from rlkern.testing import conformance


def instruction_sets() -> list[str]:
    """Returns those that this machine can run, the chosen one first; none without the extension."""
    module, reason = _load("cpu")
    if module is None or reason is not None:
        return []
    chosen = module._C.isa_chosen()
    return [chosen, *(name for name in module._C.isa_names() if name != chosen)]


def _start(name: str, threads: int) -> None:
    os.environ["RLKERN_ISA"] = name
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)  # as conftest.py: fresh memory is NaN


def _outputs(*arguments) -> bytes:
    return pickle.dumps(conformance.outputs(*arguments))


class InstructionSet:
    """A process whose C++ kernels run with one instruction set."""

    def __init__(self, name: str):
        context = multiprocessing.get_context("spawn")
        options = {"initializer": _start, "initargs": (name, torch.get_num_threads())}
        self._process = ProcessPoolExecutor(1, mp_context=context, **options)

    def chosen(self) -> str:
        """Returns the name of the instruction set that the process runs."""
        return self._process.submit(_chosen).result()

    def outputs(self, *arguments) -> conformance.Outputs:
        """Returns what conformance.outputs returns there."""
        # Pickled by hand: multiprocessing would share each tensor's memory by a file.
        return pickle.loads(self._process.submit(_outputs, *arguments).result())

    def close(self) -> None:
        """Ends the process."""
        self._process.shutdown()


def _chosen() -> str:
    return instruction_sets()[0]
