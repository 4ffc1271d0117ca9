# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels for GPUs that are not there, and counts how many variants arise.

The backend functions are called with CPU tensors; a driver without a device makes their launches
compile, specialised as they would be, and run nothing. Outputs are garbage.
    python -m rlkern.testing.aot            prints registers, spills and shared memory per kernel
The process must not have TRITON_INTERPRET=1, and launches nothing for real afterwards.
"""

import argparse
import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from rlkern.backends import triton as kernels  # type: ignore[attr-defined]  # lies in kernels/
from rlkern.backends.eager.group_advantage import KINDS
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.backends.eager.token_logprob import Softmax, Statistics, Upstream
from rlkern.backends.eager.token_objective import GATES, LEVELS, Objective, Rows
from rlkern.backends.eager.value_loss import VALUE_KINDS

# Up to the correction. With the rows after it, which few losses have, the scalars of a row spill by
# up to 32 bytes in kernels of kept sets and of sequences.
USUAL_ROWS = 5
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Long rows, long rows without alignment, rows of one block of each size; (dtype, V, kept ids).
VOCABULARIES = (151936, 50257, 4096, 1000, 21)
VARIANTS = (
    *((dtype, V, 0) for dtype in (torch.bfloat16, torch.float32) for V in VOCABULARIES),
    *((torch.bfloat16, V, 64) for V in (151936, 50257, 1000)),
)


class AbsentDevice(DriverBase):
    """A driver that names a target and has no device."""

    def __init__(self, target: GPUTarget, index: int) -> None:
        super().__init__()
        self.target, self.index = target, index

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return self.index

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_benchmarker(self) -> None:
        return None


@contextlib.contextmanager
def compiling(target: str) -> Iterator[list[tuple[str, Any]]]:
    """Yields the list of (name, compiled kernel) that launches inside the with block add to."""
    if kernels.INTERPRETED:
        raise RuntimeError("ahead-of-time compilation needs a process without TRITON_INTERPRET=1")
    compiled: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((self.__name__, kernel))
        return kernel

    # A device index of its own per target: the compiled variants are kept per device.
    triton.runtime.driver.set_active(AbsentDevice(TARGETS[target], list(TARGETS).index(target)))
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run = run


@contextlib.contextmanager
def counting_variants() -> Iterator[list[str]]:
    """Yields a list of kernel names, one more wherever a launch would compile a new variant."""
    variants: list[str] = []
    compile_variant = JITFunction._do_compile

    def note(self, key, signature, device, *rest, **kwargs):
        variants.append(self.__name__)
        self.device_caches[device][0][key] = object()
        return self.device_caches[device][0][key]

    JITFunction._do_compile = note
    try:
        with compiling("sm_90"):
            yield variants
    finally:
        JITFunction._do_compile = compile_variant


class Resources(NamedTuple):
    """Of a compiled kernel: registers per thread, spilled bytes (or registers), shared bytes."""

    registers: int
    spills: int
    shared: int


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern} in what the disassembler prints")
    return int(found.group(1))


def resources(kernel: Any) -> Resources:
    """Returns the resources of a compiled kernel, read from its machine code."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        names = ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
        vgpr, *spills = (_number(rf"\.{n}:\s*(\d+)", text) for n in names)
        return Resources(vgpr, sum(spills), kernel.metadata.shared)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = ("REG", "STACK", "LOCAL")
    registers, *spills = (_number(rf"{n}:(\d+)", text) for n in names)
    return Resources(registers, sum(spills), kernel.metadata.shared)


def launch_rows(
    dtype: torch.dtype, V: int, B: int = 1, T: int = 2, coef: float = 0.1, K: int = 0,
    softcap: float = 0.0,
) -> None:  # fmt: skip
    """Launches every kernel over the vocabulary, with every optional vector given.

    With K also a kept set of so many ids, and a softcap.
    """
    z, x = torch.zeros(B, T, V, dtype=dtype), torch.zeros(B, T)
    token, mask = torch.zeros(B, T, dtype=torch.int64), x == 0
    softmax = Softmax(x, softcap)
    if K:
        softmax = Softmax(x, 1 + abs(coef), torch.zeros(B, T, K, dtype=torch.int64))
    kernels.token_logprob(z, token, mask, softmax)
    kernels.token_logprob_companions(z, token, mask, softmax)
    kernels.token_logprob_backward(
        z, token, mask, softmax, Statistics(x, x, x), Upstream(x, x, x), z
    )
    objective = Objective("ppo_clip", "token", "k3", (coef,) * 4, coef, coef)
    kernels.policy_loss(z, token, Rows(*[x] * USUAL_ROWS), softmax, objective, z)
    kernels.scale_(z, torch.zeros(()))
    kernels.scale_(torch.zeros(B, T, 2 * V, dtype=dtype)[..., :V], torch.zeros(()))


def launch_formulas(T: int = 7, coef: float = 0.1) -> None:
    """Launches every gate, KL estimator and level, and every kernel that sees no vocabulary."""
    x, token = torch.zeros(3, T), torch.zeros(3, T, dtype=torch.int64)
    batch, offset = Rows(*[x] * USUAL_ROWS), torch.tensor([0, 3 * T])
    # Each name occurs; what one does to a kernel does not depend on the others.
    for i, (gate, kl, level) in enumerate(zip(GATES, cycle(KL_ESTIMATORS), cycle(LEVELS))):
        objective = Objective(gate, level, kl, (coef,) * 4, coef, coef)
        kernels.token_objective(x, x, batch, offset if i % 2 else None, objective)
        alone, z = Rows(x, x, None, x), torch.zeros(3, T, 151936 // 8, dtype=torch.bfloat16)
        kernels.policy_loss(z, token, alone, Softmax(), objective._replace(level="token"), None)
    kernels.scaled(torch.zeros(8, T), torch.zeros(()))
    for length in (7, 2000, 20000):
        rows, numbers = torch.zeros(3, length), torch.full((2,), coef, dtype=torch.float64)
        for steps, bounds in ((rows, None), (rows.flatten(), torch.arange(4) * length)):
            kernels.reverse_scan(steps, steps, bounds)
            kernels.gae(steps, steps, steps == 0, numbers, None, bounds)
    order, offset = torch.arange(T), torch.arange(T + 1)
    for kind in KINDS:
        lengths = torch.zeros(T) if kind == "length_weighted" else None
        kernels.group_advantage(torch.zeros(T), order, offset, kind, coef, 1, lengths)
    launch_values(T, coef)


def launch_values(T: int, coef: float) -> None:
    """Launches the losses of values, in every kind."""
    x, coefs = torch.zeros(3, T), torch.tensor([coef, coef])
    for kind in VALUE_KINDS:
        kernels.value_loss(x, x, x, x, kind, coefs)


def table(target: str) -> Iterator[tuple[str, Resources]]:
    """Yields (description, resources) of every kernel compiled for a target."""
    described: dict[str, tuple[str, Any]] = {}
    with compiling(target) as compiled:
        for dtype, V, K in VARIANTS:
            launch_rows(dtype, V, K=K)
            kept = " kept" if K else ""
            suffix = f"{str(dtype).removeprefix('torch.')} V={V}{kept}"
            for name, kernel in compiled:
                described.setdefault(kernel.hash, (f"{name} {suffix}", kernel))
            compiled.clear()
        launch_formulas()
        for name, kernel in compiled:
            described.setdefault(kernel.hash, (f"{name} ({len(described)})", kernel))
    yield from ((name, resources(kernel)) for name, kernel in described.values())


def main() -> None:
    """Prints registers, spills and shared memory of every kernel; exits with 1 if any spills."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    spilled = 0
    for target in parser.parse_args().targets:
        for name, used in table(target):
            print(
                f"{target:<7} {name:<52} registers {used.registers:>3}  spills {used.spills}"
                f"  shared {used.shared}"
            )
            spilled += used.spills
    print(f"spilled in all: {spilled}")
    raise SystemExit(1 if spilled else 0)


if __name__ == "__main__":
    main()
