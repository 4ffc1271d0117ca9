# SPDX-License-Identifier: Apache-2.0
"""Rules that a file's own text obeys or not, for test_architecture.py; each returns offences."""

import ast
import re
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from import_rules import ROOT, modules

import rlkern
from rlkern.advantage import ESTIMATORS
from rlkern.algorithms import declarations
from rlkern.backends.eager.gates import GATES
from rlkern.backends.eager.group_advantage import KINDS
from rlkern.backends.eager.preference_loss import PREFERENCE_KINDS
from rlkern.statistics import STATISTICS
from rlkern.trainer.online.advantages import TABLE
from rlkern.trainer.settings import Settings

NOTES = r"\b(?:TODO|FIXME|XXX|HACK)\b"
MATCHING = {"startswith", "endswith", "match", "fullmatch", "search", "get", "split"}
KINDS_OF_DEVICE = {"cuda", "cpu", "meta", "mps", "xpu", "hip"}
ASKING = re.compile(r"is_(cuda|cpu|meta|mps|xpu|hip|available)|get_device(_capability)?")


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


def matched_strings(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Yields (how, which string, line) of what stands in a table or is given to a string method."""
    for node in ast.walk(tree):
        strings: list[ast.expr] = []
        if isinstance(node, ast.Dict):
            how, strings = "a table", [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            how, strings = "a table", node.elts
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            how = node.func.attr
            if how in MATCHING:
                strings = [*node.args, node.func.value]
        for each in strings:
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield from ((how, word, each.lineno) for word in re.split(r"[\s,|]+", each.value))


@cache
def names_of_nothing_else() -> set[str]:
    """Returns the algorithms whose name is not that of a formula or of a group of settings, too."""
    formulas = {*GATES, *STATISTICS, *PREFERENCE_KINDS, *ESTIMATORS, *TABLE, *KINDS}
    formulas |= {one.trains for one in declarations().values()}
    return set(declarations()) - formulas - set(Settings.model_fields)


def named_algorithms(path: Path, text: str) -> list[str]:
    tree = ast.parse(text)
    known = {*declarations(), *GATES}
    bad = [
        (code, value, line)
        for code, value, line in compared_strings(tree)
        if value in known or re.search(r"\b(algorithm|declared)(\.name)?$", code)
    ]
    offences = [f"{path}:{line}: {code} is compared with {value!r}" for code, value, line in bad]
    for how, value, line in matched_strings(tree):
        if value in names_of_nothing_else():
            offences.append(f"{path}:{line}: {how} names {value!r}")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            of_one = [f"{node.module}.{alias.name}" for alias in node.names]
            of_one = [n for n in of_one if re.match(r"rlkern\.algorithms\.\w+", n)]
            found = [n for n in of_one if n.split(".")[2] in declarations()]
            offences += [f"{path}:{node.lineno}: imports {name}" for name in found]
    return offences


def without_declarations(text: str) -> ast.Module:
    """Returns the tree less the functions in which a backend declares what it serves."""

    class Drop(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            own = {"unsupported", "unavailable"}
            return ast.Pass() if node.name in own else self.generic_visit(node)

    return Drop().visit(ast.parse(text))


def device_branches(path: Path, text: str) -> list[str]:
    backend = re.match(r"rlkern/backends/\w+/__init__|kernels/\w+/__init__", path.as_posix())
    tree = without_declarations(text) if backend else ast.parse(text)
    offences = []
    for code, value, line in compared_strings(tree):
        if value in KINDS_OF_DEVICE or "device" in code:
            offences.append(f"{path}:{line}: asks for the device ({code})")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ASKING.fullmatch(node.attr):
            offences.append(f"{path}:{node.lineno}: asks for the device (.{node.attr})")
        elif isinstance(node, ast.Compare) and re.search(r"\.device\.type\b", ast.unparse(node)):
            offences.append(f"{path}:{node.lineno}: asks for the device ({ast.unparse(node)})")
        elif isinstance(node, ast.Subscript):
            if re.search(r"\.device(\.type)?$", ast.unparse(node.slice)):
                offences.append(f"{path}:{node.lineno}: looks the device up ({ast.unparse(node)})")
    for how, value, line in matched_strings(tree):
        if how in MATCHING and value in KINDS_OF_DEVICE:
            offences.append(f"{path}:{line}: asks for the device ({how} {value!r})")
    return offences


# What a file of C++ may include of ours, by the folder it lies in; no folder takes torch's.
REACHES = {"math": ("math",), "cpu": ("cpu", "math"), "cuda": ("cuda", "math")}


def foreign_headers(path: Path, text: str) -> list[str]:
    found = re.findall(r"#\s*include\s*([<\"])([^>\"]*)", text)
    folder = path.parts[1] if len(path.parts) > 2 else ""
    offences = []
    for mark, header in found:
        first = header.split("/")[0]
        python = re.match(r"pybind11/|Python\.h", header) and folder in REACHES
        outside = mark == '"' and folder in REACHES and first not in REACHES[folder]
        if first in {"torch", "ATen", "c10"} or python or outside:
            offences.append(f"{path} includes {header}")
    return offences


def long_files(path: Path, text: str) -> list[str]:
    lines = len(text.splitlines())
    return [f"{path} has {lines} lines, more than 300"] if lines > 300 else []


def many_parameters(path: Path, text: str) -> list[str]:
    """Kernels may have more, and so may the door of a public operation and what is called as one
    of another project's functions is."""
    offences = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        name = getattr(node, "name", "a lambda")
        marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", ())]
        public = path.parts[:2] == ("rlkern", "ops") and name in rlkern.__all__
        if public or {"kernel", "triton.jit"} & set(marks) or (path.stem, name) in AS_ANOTHERS:
            continue
        a = node.args
        names = [p.arg for p in [*a.posonlyargs, *a.args, *a.kwonlyargs]]
        count = len([n for n in names if n not in {"self", "cls", "ctx"}])
        if count > 8:
            offences.append(f"{path}:{node.lineno}: {name} has {count} parameters")
    return offences


AS_ANOTHERS = {("trl", "token_scores")}


def missing_licence(path: Path, text: str) -> list[str]:
    lines = [line for line in text.splitlines()[:2] if not line.startswith("#!")]
    marked = bool(lines) and re.match(r"(#|//) SPDX-License-Identifier: Apache-2\.0$", lines[0])
    return [] if marked else [f"{path} does not begin with its SPDX line"]


def private_paths(path: Path, text: str) -> list[str]:
    found = re.findall(r"(?<![\w.])/(?:home|root|Users|work|tmp|mnt|scratch)/\S*", text)
    host = socket.gethostname()
    if len(host) > 3 and host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text):
        found.append(host)
    return [f"{path} names {what}, which belongs to one machine" for what in found]


def banners(path: Path, text: str) -> list[str]:
    lines = re.findall(r"(?m)^\s*(?:#|//|/\*) ?[-=*#~_─━═]{3,}.*", text)
    notes = re.findall(rf"(?im)(?:#|//|/\*|<!--).*{NOTES}.*", text)
    return [f"{path}: {line.strip()!r}" for line in lines + notes]


@cache
def places() -> set[str]:
    """Returns every file of the tree, and every end of a path to one."""
    found = [p.relative_to(ROOT).parts for each in TOP for p in (ROOT / each).rglob("*.*")]
    return {"/".join(parts[n:]) for parts in found for n in range(len(parts))}


TOP = "rlkern kernels csrc benchmarks tests examples configs docs requirements".split()
# Made by a build, or a place that a reader fills in.
ELSEWHERE = re.compile(r"rlkern[./](_cuda|_C|configs|x)\b|benchmarks\.md|/(NAME|a|x)\.")


def broken_names(path: Path, text: str) -> list[str]:
    """Files and modules of the tree that a text speaks of exist, wherever it does so."""
    offences = []
    for named in re.findall(rf"(?<![\w/.~<{{-])(?:{'|'.join(TOP)})/[\w/-]+\.[a-z]{{1,5}}\b", text):
        if named not in places() and not ELSEWHERE.search(named):
            offences.append(f"{path}: there is no {named}")
    for named in re.findall(r"(?<![\w./-])(?:rlkern|benchmarks)(?:\.\w+)+", text):
        module = named
        while module not in modules():
            module = module.rpartition(".")[0]
        rest = named[len(module) + 1 :].split(".")[0]
        known = {*rlkern.__all__, *dir(rlkern)} if module == "rlkern" else defined_in(module)
        if rest and rest not in known and not ELSEWHERE.search(named):
            offences.append(f"{path}: there is no {named}")
    return offences


@cache
def defined_in(module: str) -> set[str]:
    """Returns every name of a module's own text, without importing it."""
    return set(re.findall(r"\w+", modules()[module].read_text(encoding="utf-8")))
