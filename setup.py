# SPDX-License-Identifier: Apache-2.0
"""Builds `rlkern._C`: one binary with the CPU kernels of several instruction sets.

RLKERN_BUILD says what to build: `auto` (the default: the extension if a C++ compiler is there),
`cpu` (the extension, or an error), `cuda` (the extension and rlkern/_cuda.so, or an error), `none`.
RLKERN_CUDA_TARGETS, such as "sm_90", says which GPUs the CUDA kernels are compiled for, if not all.
`auto` builds no CUDA kernels even where nvcc is: Triton serves unless they are asked for by name.
Everything else about the package is in pyproject.toml.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CHOICES = ("auto", "cpu", "cuda", "none")
# No -ffast-math: it would let the compiler drop the NaN and inf that masked rows may hold.
FLAGS = "-std=c++17 -O3 -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=fast".split()
FLAGS += "-fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra".split()
# GCC 12 warns inside its own AVX-512 header.
FLAGS += "-Wno-uninitialized -Wno-maybe-uninitialized".split()
AVX2 = "-mavx2 -mfma -mf16c".split()
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c".split()
# Best first: the first one that a processor can run is used.
ISAS = {
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
    "avx512": AVX512,
    "avx2": AVX2,
    "baseline": [],
}
# The licence of pyproject.toml is an expression, which older ones do not know.
SETUPTOOLS = 77
# PTX of sm_90 serves what comes later: the kernels use nothing particular to one architecture.
CUDA_TARGETS = ("sm_80", "sm_90", "sm_100", "compute_90")
CUDA_FLAGS = (
    "-std=c++17 -O3 --threads 0 -shared -Xcompiler -fPIC,-Wall -Xlinker --exclude-libs,ALL".split()
)
HEADER_PROBE = "#include <Python.h>\n#include <atomic>\nint main() { return 0; }\n"


def say(sentence):
    """Writes to stderr, where pip shows it with -v and always when the build fails."""
    print(f"rlkern: {sentence}", file=sys.stderr, flush=True)


def find_compiler():
    """Returns the C++ compiler's command as a list, or None."""
    named = os.environ.get("CXX")
    for command in [named] if named else ["c++", "g++", "clang++"]:
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words
    return None


def compiles(compiler, *flags, source="int main() { return 0; }\n"):
    """Returns whether the compiler accepts these flags for this source."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.cpp")
        probe.write_text(source)
        command = [*compiler, "-std=c++17", "-Werror", *flags, "-c", str(probe)]
        return not subprocess.run([*command, "-o", f"{probe}.o"], capture_output=True).returncode


def python_include():
    return f"-I{sysconfig.get_path('include')}"


def find_nvcc():
    """Returns the path of the CUDA compiler, or None."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which(str(Path(home, "bin", "nvcc")) if home else "nvcc")


def cuda_obstacle():
    """Returns why the CUDA kernels cannot be built here, in a sentence, or None."""
    if not cuda_sources():
        return "csrc/cuda is not there"
    if find_nvcc() is None:
        return f"no nvcc found (CUDA_HOME={os.environ.get('CUDA_HOME', '')!r}, nor on PATH)"
    return None


def obstacle():
    """Returns why the extension cannot be built here, in a sentence, or None."""
    if not (ROOT / "csrc" / "registration.cpp").is_file():
        return "csrc/registration.cpp is not there"
    compiler = find_compiler()
    if compiler is None:
        return f"no C++ compiler found (CXX={os.environ.get('CXX', '')!r}, nor c++, g++, clang++)"
    if not compiles(compiler):
        return f"{shlex.join(compiler)} cannot compile C++17"
    if not compiles(compiler, python_include(), source=HEADER_PROBE):
        return f"Python.h is not in {python_include()[2:]} (on Debian: apt install python3-dev)"
    return None


def wanted():
    """Returns the names of what to build; ends with one sentence if it cannot be had."""
    choice = os.environ.get("RLKERN_BUILD", "auto")
    if choice not in CHOICES:
        raise SystemExit(
            f"rlkern: RLKERN_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}"
        )
    if choice == "none":
        return []
    reason = obstacle() or (cuda_obstacle() if choice == "cuda" else None)
    if reason and choice != "auto":
        raise SystemExit(f"rlkern: RLKERN_BUILD={choice}, but {reason}")
    if reason:
        say(f"installing without the native extension, because {reason}; the eager backend serves")
        return []
    return ["rlkern._C", "rlkern._cuda"] if choice == "cuda" else ["rlkern._C"]


def supported_isas(compiler):
    """Returns {name: flags} of the instruction sets that this compiler can emit."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {"baseline": []}
    found = {name: flags for name, flags in ISAS.items() if compiles(compiler, *flags)}
    for name in ISAS.keys() - found.keys():
        say(f"{shlex.join(compiler)} cannot compile for {name}, left out")
    return found


def openmp_flags(compiler):
    if compiles(compiler, "-fopenmp", source="#include <omp.h>\nint main() { return 0; }\n"):
        return ["-fopenmp"]
    say(f"{shlex.join(compiler)} has no OpenMP, so the CPU kernels use one thread")
    return []


def common_sources():
    """Returns what is compiled once, for any machine."""
    return sorted(p for d in ("", "bindings/", "cpu/") for p in ROOT.glob(f"csrc/{d}*.cpp"))


def isa_sources():
    """Returns what is compiled once for each instruction set, with RLKERN_ISA its name."""
    return sorted(ROOT.glob("csrc/cpu/isa/*.cpp"))


def cuda_sources():
    """Returns what nvcc compiles."""
    return sorted(ROOT.glob("csrc/cuda/*.cu"))


def cuda_targets():
    """Returns what the CUDA kernels are compiled for; ends with one sentence for a wrong name."""
    named = os.environ.get("RLKERN_CUDA_TARGETS", "").replace(",", " ").split()
    for name in named:
        if not re.fullmatch(r"(sm|compute)_\d+[af]?", name):
            raise SystemExit(
                f"rlkern: RLKERN_CUDA_TARGETS lists sm_90, compute_90 and the like, got {name!r}"
            )
    return named or CUDA_TARGETS


def cuda_command(target):
    """Returns the command that makes the shared library of the CUDA kernels."""
    targets = []
    for code in cuda_targets():
        targets += ["-gencode", f"arch={code.replace('sm_', 'compute_')},code={code}"]
    sources = [str(path) for path in cuda_sources()]
    return [find_nvcc(), *CUDA_FLAGS, *targets, f"-I{ROOT / 'csrc'}", *sources, "-o", str(target)]


def escape(path):
    """Returns a path as build.ninja spells it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_file(compiler, target, isas):
    """Returns the text of build.ninja: an object per source and instruction set, then the link."""
    import pybind11

    openmp = openmp_flags(compiler)
    table = "-DRLKERN_ISAS(X)=" + " ".join(f"X({name})" for name in isas)
    command = shlex.join([*compiler, *FLAGS, *openmp, f"-I{ROOT / 'csrc'}", table])
    # For those alone that know Python: another environment's pybind11 compiles no kernel again.
    python = [python_include(), f"-I{pybind11.get_include()}"]
    edges, objects = [], []

    def compile_edge(source, prefix, flags):
        objects.append(f"{prefix}.{source.parent.name}.{source.stem}.o")
        edges.append(f"build {objects[-1]}: cxx {escape(source)}\n  extra = {shlex.join(flags)}\n")

    for source in common_sources():
        compile_edge(source, "common", [] if source.parent.name == "cpu" else python)
    for name, flags in isas.items():
        for source in isa_sources():
            compile_edge(source, name, [*flags, f"-DRLKERN_ISA={name}"])
    link = shlex.join([*compiler, "-shared", *openmp])
    return (
        f"rule cxx\n  command = {command} $extra -MMD -MF $out.d -c $in -o $out\n"
        "  deps = gcc\n  depfile = $out.d\n  description = CXX $out\n"
        f"rule link\n  command = {link} $in -o $out\n  description = LINK $out\n"
        + "".join(edges)
        + f"build {escape(target)}: link {' '.join(objects)}\n"
    )


def ninja_command():
    try:
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    except ImportError:
        found = shutil.which("ninja")
    if not found:
        raise SystemExit("rlkern: ninja is needed to build the extension: pip install ninja")
    return found


class NinjaBuild(build_ext):
    """Compiles with ninja in build/native/, which outlives pip's own temporary folders."""

    def get_ext_filename(self, name):
        *package, last = name.split(".")
        if last != "_cuda":
            return super().get_ext_filename(name)
        return os.path.join(*package, "_cuda.so")  # no module: no version of Python in its name

    def build_extension(self, ext):
        folder = ROOT / "build" / "native" / sysconfig.get_config_var("SOABI")
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name))
        built = folder / target.name
        if ext.name == "rlkern._cuda":
            subprocess.run(cuda_command(built), check=True)
        else:
            compiler = find_compiler()
            text = ninja_file(compiler, built.name, supported_isas(compiler))
            (folder / "build.ninja").write_text(text)
            subprocess.run([ninja_command(), "-C", str(folder)], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replace, never overwrite: a process that has the old one loaded keeps it.
        shutil.copy2(built, f"{target}.new")
        os.replace(f"{target}.new", target)


def extensions():
    """Returns what setuptools shall build; the sources are those that an sdist must hold."""
    sources = {"rlkern._C": [*common_sources(), *isa_sources()], "rlkern._cuda": cuda_sources()}
    return [
        Extension(name, [str(path.relative_to(ROOT)) for path in sources[name]])
        for name in wanted()
    ]


if int(setuptools.__version__.partition(".")[0]) < SETUPTOOLS:
    raise SystemExit(f"rlkern: needs setuptools {SETUPTOOLS}, this is {setuptools.__version__}")
setup(
    packages=[
        *find_packages(include=["rlkern", "rlkern.*"]),
        *(f"rlkern.backends.{name}" for name in find_packages("kernels")),
        "rlkern.configs",
    ],
    package_dir={"rlkern.backends.triton": "kernels/triton", "rlkern.configs": "configs"},
    package_data={"": ["py.typed", "*.json"], "rlkern.configs": ["*.yaml", "algorithms/*.yaml"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": NinjaBuild},
)
