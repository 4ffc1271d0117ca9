# SPDX-License-Identifier: Apache-2.0
"""Rules of who imports whom and of where an operation's door stands, for test_architecture.py."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import rlkern

ROOT = Path(__file__).resolve().parents[1]

# A module imports from its own part and from the layers before it. A longer name goes before a
# shorter one, and a new file of a closed package needs a line.
LAYERS = (
    {"_C", "algorithms", "backends.memory"},
    {"backends.eager"},
    {"backends.cpu", "backends.cuda", "backends.triton"},
    {"backends"},
    {"ops._check"},
    {"aggregate"},
    {"ops"},
    {"token_advantage", "sampling", "statistics", "integrations.head"},
    {"advantage", "integrations.find_head"},
    {"integrations.fused_head"},
    {"_exports"},
    {"testing", "runs"},
    {"trainer.settings", "trainer.metrics", "trainer.progress"},
    {"trainer.data"},
    {"trainer.processes", "trainer.tasks"},
    {"trainer.rows"},
    {"trainer.models"},
    {"trainer.rollout"},
    {"trainer.reward"},
    {"trainer.critic"},
    {"trainer.losses", "trainer.parts"},
    {"trainer.update", "trainer.equip"},
    {"trainer.show", "trainer.collect", "trainer.evaluate"},
    {"trainer.online", "trainer.offline"},
    {"trainer.preflight", "trainer.run"},
    {"trainer.build"},
    {"trainer.loop", "trainer.measure", "trainer.preview"},
    {"trainer.pipeline"},
    {"trainer", "integrations", "control"},
    {"compare", "doctor"},
    {"cli"},
    {"__main__"},
)
LAYER = {name: rank for rank, names in enumerate(LAYERS) for name in names}
CLOSED = {"trainer", "backends"}
# Each of these stands without the others, whatever lies below what.
APART = {"trainer", "control", "integrations"}
# What is beside the package and not installed with it.
OUTSIDE = {"tests", "benchmarks", "examples", "kernels", "docs", "setup"}
OUTSIDE |= {path.stem for folder in ("tests", "examples") for path in (ROOT / folder).glob("*.py")}
# What stands in the file of another stem.
FAMILIES = {
    "group_segments": "group_advantage",
    "ld_sequence_logprob": "sequence_logprob",
    "mean_sequence_logprob": "sequence_logprob",
    "merge_metrics": "metrics_dict",
    "preference_metrics_dict": "metrics_dict",
    "scale_": "policy_loss",
    "value_metrics_dict": "metrics_dict",
}
# Packages whose functions are no operations: they choose backends and find algorithms.
NO_DOORS = ("rlkern", "rlkern.algorithms", "rlkern.backends")


def part_of(name: str) -> str | None:
    """Returns the part of the package that a dotted name belongs to, None for any other name.

    >>> part_of("rlkern.ops._check.tensor"), part_of("rlkern.ops.gae"), part_of("rlkern.trainer")
    ('ops._check', 'ops', 'trainer')
    >>> part_of("rlkern"), part_of("rlkern.gae"), part_of("torch")
    ('_exports', '_exports', None)
    """
    package, *parts = name.split(".")
    names = (".".join(parts[:n]) for n in (2, 1))
    part = next((n for n in names if n in LAYER), "_exports")  # whose names are the package's
    return part if package == "rlkern" else None


def module_of(path: Path) -> str:
    """Returns the dotted name that a file is imported by.

    >>> module_of(Path("kernels/triton/gae.py"))
    'rlkern.backends.triton.gae'
    """
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return re.sub(r"^kernels(?=\.|$)", "rlkern.backends", name)


def imported(path: Path, text: str) -> Iterator[str]:
    """Yields the dotted name of everything imported: in functions, for types, relatively, or as a
    module's name in quotes, as importlib takes it."""
    own = module_of(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            named = [a.value for a in node.args if isinstance(a, ast.Constant)]
            yield from (resolve_name(name, package) for name in named if name.startswith("."))
        elif isinstance(node, ast.Constant) and "." in str(node.value) and node.value in modules():
            yield node.value


def against_the_arrows(path: Path, text: str) -> list[str]:
    own = part_of(module_of(path))
    if own is None:
        return []
    offences = []
    for name in imported(path, text):
        part = part_of(name)
        if part is None and name.split(".")[0] in OUTSIDE:
            offences.append(f"{path} imports {name}, which is not of the package")
        if part is None or part == own:
            continue
        tops = {own.split(".")[0], part.split(".")[0]}
        apart = len(tops) == 2 and tops <= APART and not part.startswith("integrations.")
        if apart or LAYER[part] >= LAYER[own]:
            offences.append(f"{path} imports {name}, which does not lie below it")
    return offences


def unknown_parts(path: Path, text: str) -> list[str]:
    module = module_of(path)
    _, *parts = module.split(".")
    wanted = ".".join(parts[: 2 if parts and parts[0] in CLOSED else 1])
    return [f"{path}: {wanted} has no place in LAYERS"] if wanted not in {*LAYER, ""} else []


@cache
def modules() -> dict[str, Path]:
    """Returns the file of every module of the package and of the benchmarks."""
    found = [p for each in ("rlkern", "kernels", "benchmarks") for p in (ROOT / each).rglob("*.py")]
    return {module_of(path.relative_to(ROOT)): path for path in found}


def imported_modules(path: Path, text: str) -> set[str]:
    """Returns the modules that a text imports, also where only types are wanted."""
    found = set()
    for name in imported(path, text):
        while name and name not in modules():
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {""}


@cache
def imports_of_the_tree() -> dict[str, set[str]]:
    texts = {m: (p.relative_to(ROOT), p.read_text(encoding="utf-8")) for m, p in modules().items()}
    return {module: imported_modules(*of_file) for module, of_file in texts.items()}


def circles(path: Path, text: str) -> list[str]:
    own = module_of(path)
    graph = {**imports_of_the_tree(), own: imported_modules(path, text) - {own}}
    before: dict[str, str] = {}
    queue = [own]
    while queue and own not in before:
        here = queue.pop(0)
        for there in graph.get(here, set()) - before.keys():
            before[there] = here
            queue.append(there)
    if own not in before:
        return []
    way = [own]
    while len(way) < 2 or way[-1] != own:
        way.append(before[way[-1]])
    return [f"{path} imports itself: {' -> '.join(reversed(way))}"]


def missing_doors(path: Path, text: str) -> list[str]:
    nodes = ast.parse(text).body
    kinds = (ast.FunctionDef, ast.FunctionDef | ast.ClassDef)
    found = (n.name for n in nodes if isinstance(n, kinds[path.stem not in rlkern.__all__]))
    snakes = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in found}
    return [] if path.stem in snakes else [f"{path} does not define {path.stem}"]


def other_doors(path: Path, text: str) -> list[str]:
    offences = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and path.name == "_exports.py":
            if not ast.unparse(node).startswith("__all__ ="):
                offences.append(f"{path}:{node.lineno}: {ast.unparse(node)} defines a name")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or node.module in NO_DOORS:
            continue
        stem = str(node.module).rpartition(".")[2]
        for alias in node.names:
            if alias.asname is not None:
                offences.append(f"{path}: {alias.name} of {node.module} is {alias.asname} here")
            if alias.name.islower() and FAMILIES.get(alias.name, alias.name) != stem:
                offences.append(f"{path}: {alias.name} is defined in {node.module}")
    return offences


def registered_elsewhere(path: Path, text: str) -> list[str]:
    """An operator of the dispatcher is registered in the file of its stem, and by one function."""
    offences = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        by = ast.unparse(node.func).rpartition(".")[2]
        schema = re.match(r"f?['\"](\w+)\(", ast.unparse(node.args[0])) if node.args else None
        name = FAMILIES.get(schema[1], schema[1]) if schema else ""
        own = name.startswith(path.stem) and by == "register"
        if by in {"custom_op", "triton_op", "Library"} or (
            schema is not None and by in {"register", "define"} and not own
        ):
            offences.append(f"{path}:{node.lineno}: {ast.unparse(node)[:60]} registers elsewhere")
    return offences
