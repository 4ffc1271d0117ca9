# SPDX-License-Identifier: Apache-2.0
"""Holds the rules of the layout; each is a function that returns offences and can fail."""

import ast
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from import_rules import (
    ROOT,
    against_the_arrows,
    circles,
    missing_doors,
    other_doors,
    unknown_parts,
)

import rlkern

TEXT = set(".py .cpp .h .cu .cuh .toml .yaml .yml .md .txt .in .json .jsonl".split())


def files() -> list[Path]:
    """Returns the tracked files, or outside git all there are, relative to the root."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\n") if not listed.returncode else []
    found = [Path(n) for n in names if n] or [p.relative_to(ROOT) for p in ROOT.rglob("*.*")]
    return [p for p in found if (ROOT / p).is_file()]


def compared_strings(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Yields (what is compared, with which string, line) of comparisons and of match statements."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            code = " ".join(ast.unparse(s) for s in sides if not isinstance(s, ast.Constant))
            constants = [c for s in sides for c in ast.walk(s) if isinstance(c, ast.Constant)]
            yield from ((code, c.value, node.lineno) for c in constants if type(c.value) is str)
        elif isinstance(node, ast.Match):
            values = [v for v in ast.walk(node) if isinstance(v, ast.MatchValue)]
            code = ast.unparse(node.subject)
            yield from ((code, ast.unparse(v.value).strip("'"), v.lineno) for v in values)


def named_algorithms(path: Path, text: str) -> list[str]:
    pairs = compared_strings(ast.parse(text))
    registered = {**rlkern.algorithms(), **rlkern.offline_algorithms()}
    bad = [p for p in pairs if p[1] in registered or re.search(r"\balgorithm(\.name)?$", p[0])]
    return [f"{path}:{line}: {code} is compared with {value!r}" for code, value, line in bad]


def without_declarations(text: str) -> ast.Module:
    """Returns the tree less the functions in which a backend declares what it serves."""

    class Drop(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            own = {"unsupported", "unavailable"}
            return ast.Pass() if node.name in own else self.generic_visit(node)

    return Drop().visit(ast.parse(text))


def device_branches(path: Path, text: str) -> list[str]:
    tree = without_declarations(text)
    pairs = [p for p in compared_strings(tree) if "device" in p[0]]
    flags = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    asked = [n for n in flags if n.attr in {"is_cuda", "is_cpu", "is_meta"}]
    return [f"{path}:{line}: asks for the device ({code})" for code, _, line in pairs] + [
        f"{path}:{n.lineno}: asks for the device (.{n.attr})" for n in asked
    ]


def torch_headers(path: Path, text: str) -> list[str]:
    found = re.findall(r"#\s*include\s*[<\"]((?:torch|ATen|c10)/[^>\"]*)", text)
    return [f"{path} includes {header}" for header in found]


def long_files(path: Path, text: str) -> list[str]:
    lines = text.count("\n")
    return [f"{path} has {lines} lines, more than 300"] if lines > 300 else []


def many_parameters(path: Path, text: str) -> list[str]:
    offences = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name not in rlkern.__all__:
            a = node.args
            names = [p.arg for p in [*a.posonlyargs, *a.args, *a.kwonlyargs]]
            count = len([n for n in names if n not in {"self", "cls", "ctx"}])
            if count > 8:
                offences.append(f"{path}:{node.lineno}: {node.name} has {count} parameters")
    return offences


def missing_licence(path: Path, text: str) -> list[str]:
    lines = [line for line in text.splitlines()[:2] if not line.startswith("#!")]
    marked = bool(lines) and re.match(r"(#|//) SPDX-License-Identifier: Apache-2\.0$", lines[0])
    return [] if marked else [f"{path} does not begin with its SPDX line"]


def private_paths(path: Path, text: str) -> list[str]:
    found = re.findall(r"(?<![\w.])/(?:home|root|Users|work)/\S*", text)
    host = socket.gethostname()
    if len(host) > 3 and host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text):
        found.append(host)
    return [f"{path} names {what}, which belongs to one machine" for what in found]


def banners(path: Path, text: str) -> list[str]:
    found = re.findall(r"(?m)^\s*(?:#|//) ?[-=*#]{5,}.*|\bTODO\b.*|\bFIXME\b.*", text)
    return [f"{path}: {line.strip()!r}" for line in found]


class Rule(NamedTuple):
    check: Callable[[Path, str], list[str]]
    applies: Callable[[Path], bool]
    bad_path: str
    bad_text: str


def library(path: Path) -> bool:
    return path.suffix == ".py" and path.parts[0] in {"rlkern", "kernels", "benchmarks"}


def packaged(path: Path) -> bool:
    return path.suffix == ".py" and path.parts[0] in {"rlkern", "kernels"}


def door(path: Path) -> bool:
    return path.parts[:2] == ("rlkern", "ops") and not path.name.startswith("_")


def source(path: Path) -> bool:
    return path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"}


def outside(*places: str) -> Callable[[Path], bool]:
    """Returns the predicate of library files that lie in none of these places."""
    return lambda path: library(path) and not path.as_posix().startswith(places)


SIGNED = {".py", ".cpp", ".h", ".cu", ".cuh", ".toml"}
KERNEL_TWINS = ("kernels/", "rlkern/backends/", "rlkern/ops/")
MAY_ASK_DEVICE = (
    "rlkern/backends/__init__.py",
    "rlkern/trainer/",
    "rlkern/doctor.py",
    "benchmarks/",
    "rlkern/backends/memory.py",
)
LONG_LIST = ", ".join("abcdefghi")

RULES = {
    "arrows": Rule(against_the_arrows, library, "rlkern/ops/x.py", "import rlkern.trainer.loop\n"),
    "front door": Rule(against_the_arrows, library, "kernels/triton/x.py", "import rlkern\n"),
    "places": Rule(
        unknown_parts, lambda p: library(p) and p.parts[0] == "rlkern", "rlkern/misc/x.py", ""
    ),
    "circles": Rule(circles, packaged, "rlkern/ops/_check.py", "from rlkern.ops.gae import gae\n"),
    "circles of types": Rule(
        circles,
        packaged,
        "rlkern/ops/_check.py",
        "if TYPE_CHECKING:\n    from rlkern.ops._rows import as_grid\n",
    ),
    "door": Rule(missing_doors, door, "rlkern/ops/x.py", "def y(): ...\n"),
    "front doors": Rule(
        other_doors,
        lambda p: p == Path("rlkern/__init__.py"),
        "rlkern/__init__.py",
        "from rlkern.ops._objective import policy_loss\n",
    ),
    "algorithms": Rule(
        named_algorithms,
        outside("rlkern/algorithms/"),
        "rlkern/trainer/x.py",
        "y = name in ('grpo', 'z')\n",
    ),
    "algorithm": Rule(
        named_algorithms,
        outside("rlkern/algorithms/"),
        "rlkern/x.py",
        "if algorithm == 'other':\n    pass\n",
    ),
    "match": Rule(
        named_algorithms,
        outside("rlkern/algorithms/"),
        "rlkern/x.py",
        "match name:\n    case 'grpo':\n        pass\n",
    ),
    "device kind": Rule(
        device_branches, outside(*MAY_ASK_DEVICE), "rlkern/x.py", "y = x.device.type == 'cuda'\n"
    ),
    "is_cuda": Rule(
        device_branches, outside(*MAY_ASK_DEVICE), "rlkern/x.py", "y = 1 if x.is_cuda else 2\n"
    ),
    "torch headers": Rule(
        torch_headers, lambda p: p.parts[0] == "csrc", "csrc/math/x.h", "#include <torch/all.h>\n"
    ),
    "length": Rule(long_files, lambda p: p.suffix == ".py", "rlkern/x.py", "x = 1\n" * 301),
    "parameters": Rule(
        many_parameters,
        outside(*KERNEL_TWINS, "rlkern/integrations/trl.py"),  # whose signature is TRL's
        "rlkern/x.py",
        f"def f({LONG_LIST}): ...\n",
    ),
    "licence": Rule(missing_licence, lambda p: p.suffix in SIGNED, "rlkern/x.py", '"""x."""\n'),
    "machines": Rule(private_paths, lambda p: p.suffix in TEXT, "x.md", "see /" + "root/x\n"),
    "banners": Rule(banners, source, "x.py", "# " + "-----" + "\n"),
    "notes": Rule(banners, source, "x.py", "# TO" + "DO later\n"),
}


@pytest.mark.parametrize("name", RULES)
def test_the_tree_obeys(name: str):
    rule = RULES[name]
    texts = {p: (ROOT / p).read_text(encoding="utf-8") for p in files() if rule.applies(p)}
    assert not (offences := [o for p, text in texts.items() for o in rule.check(p, text)]), (
        "\n".join(offences)
    )


@pytest.mark.parametrize("name", RULES)
def test_the_rule_catches_its_bad_example(name: str):
    rule = RULES[name]
    assert rule.applies(Path(rule.bad_path))
    assert rule.check(Path(rule.bad_path), rule.bad_text)


def test_every_rule_applies_to_some_file():
    tracked = files()
    idle = [name for name, rule in RULES.items() if not any(rule.applies(p) for p in tracked)]
    assert not idle


def test_every_folder_of_the_library_is_a_package():
    folders = {p.parent for p in files() if library(p) and p.parts[0] != "benchmarks"}
    assert not [str(f) for f in folders if not (ROOT / f / "__init__.py").is_file()]


def said_by(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_the_command_line_lists_what_exists():
    help_text = said_by(sys.executable, "-m", "rlkern.cli", "--help")
    assert all(command in help_text for command in ("train", "doctor", "algorithms"))
    listed = said_by(sys.executable, "-m", "rlkern.cli", "algorithms")
    assert all(name in listed for name in rlkern.algorithms())


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = {t for line in re.findall(r"(?m)^\.PHONY: (.*)", text) for t in line.split()}
    shown = set(
        re.findall(r"(?m)^  make (\S+)  +\S", said_by("make", "--no-print-directory", "help"))
    )
    assert shown == {target for target in phony if not target.startswith("gpu-")}
