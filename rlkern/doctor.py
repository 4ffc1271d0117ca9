# SPDX-License-Identifier: Apache-2.0
"""Says what rlkern found here: versions, compiler, instruction set, GPUs, who serves what."""

import contextlib
import importlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

import rlkern
from rlkern import integrations
from rlkern.trainer.rollout import packing

PACKAGES = ("torch", "triton", "transformers", "numpy")
Rows = list[tuple[str, str]]


def version_of(package: str) -> str:
    """Returns a package's version, or that it is not installed.

    >>> version_of("no-such-package")
    'not installed'
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def compiler() -> str:
    """Returns the C++ compiler that a build would use, with the first line it says of itself."""
    named = os.environ.get("CXX")
    for command in [named] if named else ["c++", "g++", "clang++"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            said = subprocess.run([*words, "--version"], capture_output=True, text=True).stdout
            return f"{shutil.which(words[0])}: {said.strip().splitlines()[0] if said else '?'}"
    return f"none found (CXX={named})" if named else "none found"


def extension() -> tuple[ModuleType | None, str]:
    """Returns the compiled module, or None, and where it is or why it is not there."""
    try:
        module = importlib.import_module("rlkern._C")
    except ImportError as error:
        return None, f"not there ({error}); the CPU is served by eager PyTorch"
    return module, str(module.__file__)


def instruction_sets(module: ModuleType | None) -> Rows:
    """Returns which compiled instruction sets this processor can run, which one runs, and why."""
    if module is None or not hasattr(module, "isa_names"):
        return []
    forced = os.environ.get("RLKERN_ISA")
    why = f"because RLKERN_ISA={forced}" if forced else "the best that this processor has"
    try:
        chosen = f"{module.isa_chosen()}, {why}"
    except (RuntimeError, ValueError) as error:
        chosen = f"none: {error}"
    return [("can run", ", ".join(module.isa_names())), ("runs", chosen)]


def threads() -> str:
    """Returns how many threads torch computes with, of how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    variable = os.environ.get("OMP_NUM_THREADS", "not set")
    return f"{torch.get_num_threads()} of {cores} cores (OMP_NUM_THREADS {variable})"


def processor() -> str:
    """Returns what the processor calls itself."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def sampling() -> str:
    """Returns how the trainer's sampler multiplies bfloat16 weights on this processor."""
    if (why := packing.unavailable()) is None:
        return (
            f"bfloat16 weights on the CPU are packed for answers of {packing.PAYS} tokens or more"
        )
    return f"bfloat16 weights on the CPU are not packed: {why}"


def gpus() -> Rows:
    """Returns a row for each GPU that torch sees, or one that says it sees none."""
    if not torch.cuda.is_available():
        return [("GPU", f"none that torch {torch.__version__} can see")]
    rows = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        memory_gib = found.total_memory / 2**30
        rows.append(
            (f"GPU {index}", f"{found.name}, sm_{found.major}{found.minor}, {memory_gib:.0f} GiB")
        )
    return rows


def recorded_runs() -> str:
    """Returns the devices with a committed benchmark and conformance record, in a checkout."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
    return (
        ", ".join(sorted(path.stem for path in folder.glob("*.jsonl"))) or "none in this checkout"
    )


def folder_size(folder: Path) -> str:
    """Returns a folder's path with what it holds in MB, or that it is empty."""
    size = 0
    # os.walk asks the disk once for a file and not three times: caches hold tens of thousands.
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # who compiles now moves files about
                size += os.lstat(os.path.join(place, name)).st_size
    return f"{folder} ({size / 1e6:.1f} MB)" if size else f"{folder} (empty)"


def caches() -> Rows:
    """Returns where converted models and compiled Triton kernels are kept, and how much that is."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    models = Path(os.environ.get("RLKERN_CACHE") or home / "rlkern")
    kernels = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    return [("model cache", folder_size(models)), ("triton cache", folder_size(kernels))]


def trainer(found: integrations.Status) -> str:
    """Returns what can be said of one trainer that rlkern can serve."""
    if found.version is None:
        return f"not installed ({found.supported})"
    if (why := integrations.refusal(found.name)) is not None:
        return why
    unplugged = integrations.trainer_of(found.name).unplugged
    if unplugged is None:
        return f"{found.version}, can be patched"
    if (why := unplugged()) is not None:
        return f"{found.version}, can be patched, but `import {found.name}` does not do it: {why}"
    return f"{found.version}, patched by `import {found.name}`"


def trainers() -> Rows:
    """Returns of each trainer that rlkern can serve in which version it is there, and whether its
    functions are those that rlkern replaces."""
    return [(found.name, trainer(found)) for found in integrations.status()]


def report() -> Rows:
    """Returns everything but the backend table, as (name, value) rows."""
    module, where = extension()
    settings = [
        f"{name}={os.environ[name]}" for name in sorted(os.environ) if name[:7] == "RLKERN_"
    ]
    return [
        ("rlkern", f"{rlkern.__version__} in {Path(rlkern.__file__).parent}"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((package, version_of(package)) for package in PACKAGES),
        ("processor", processor()),
        ("C++ compiler", compiler()),
        ("extension", where),
        *instruction_sets(module),
        ("threads", threads()),
        ("sampling", sampling()),
        *gpus(),
        ("recorded runs", recorded_runs()),
        *caches(),
        *trainers(),
        ("settings", ", ".join(settings) or "no RLKERN_ variable is set"),
    ]


def show(rows: Rows) -> None:
    """Prints the rows; on a terminal through rich, where it is installed."""
    if not (sys.stdout.isatty() and find_spec("rich")):
        print("\n".join(f"{name:<15}{value}" for name, value in rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[bold]{name}[/bold]", value.replace("[", r"\["))
    Console(highlight=False).print(table)


def main() -> int:
    """Prints the report and the table of backends; returns 1 if a setting cannot be served."""
    show(report())
    try:
        table = rlkern.explain()
    except (ValueError, rlkern.BackendUnavailable) as error:
        print(f"\n{error}")
        return 1
    print(f"\n{table}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
