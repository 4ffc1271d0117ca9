# SPDX-License-Identifier: Apache-2.0
"""Rules of who imports whom and of where an operation's door stands, for test_architecture.py."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A module imports from its own layer and those before it. A longer name goes before a shorter one.
LAYERS = (
    {"_C", "algorithms", "backends.memory"},
    {"backends.eager"},
    {"backends.cpu", "backends.cuda", "backends.triton"},
    {"backends"},
    {"aggregate", "ops"},
    {"token_advantage"},
    {"advantage", "integrations.head", "sampling", "statistics"},
    {"integrations.find_head"},
    {"integrations.fused_head"},
    {"_exports"},
    {"testing"},
    {"runs"},
    {"trainer.settings", "trainer.metrics", "trainer.progress"},
    {"trainer.data"},
    {"trainer.device", "trainer.processes", "trainer.models", "trainer.tasks", "trainer.rows"},
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
    {"trainer.pipeline", "trainer", "integrations", "control"},
    {"compare"},
    {"cli", "doctor", "__main__"},
)
LAYER = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PUBLIC_DOOR = LAYER["testing"]  # from here on `import rlkern` itself is the way in
# A function that stands in the file of another, whose name says so.
FAMILIES = {
    "mean_sequence_logprob": "sequence_logprob",
    "merge_metrics": "metrics_dict",
    "preference_metrics_dict": "metrics_dict",
    "value_metrics_dict": "metrics_dict",
}
# Packages whose functions are no operations: they choose backends and find algorithms.
NO_DOORS = ("rlkern", "rlkern.algorithms", "rlkern.backends")


def layer_of(module: str) -> int | None:
    """Returns the layer of a dotted module name, None for the package itself or anything else.

    >>> layer_of("rlkern.ops._check") == LAYER["ops"], layer_of("rlkern"), layer_of("torch")
    (True, None, None)
    >>> layer_of("rlkern.backends.eager.kl") == LAYER["backends.eager"]
    True
    """
    package, *parts = module.split(".")
    names = [".".join(parts[:n]) for n in (2, 1)]
    return next((LAYER[n] for n in names if n in LAYER), None) if package == "rlkern" else None


def module_of(path: Path) -> str:
    """Returns the dotted name that a file is imported by.

    >>> module_of(Path("kernels/triton/gae.py"))
    'rlkern.backends.triton.gae'
    """
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return re.sub(r"^kernels(?=\.|$)", "rlkern.backends", name)


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the dotted name of everything imported, functions' own imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def against_the_arrows(path: Path, text: str) -> list[str]:
    own = layer_of(module_of(path))
    if own is None:
        return []
    up = [m for m in imported(ast.parse(text)) if (layer_of(m) or 0) > own]
    door = [m for m in imported(ast.parse(text)) if m == "rlkern" and own < PUBLIC_DOOR]
    return [f"{path} imports {m}, which lies above it" for m in up + door]


def unknown_parts(path: Path, text: str) -> list[str]:
    known = {*LAYER, "__init__"}
    name = path.with_suffix("").parts[1]
    return [] if name in known else [f"{path}: {name} has no place in LAYERS"]


@cache
def modules() -> dict[str, Path]:
    """Returns the file of every module of the package."""
    found = [*(ROOT / "rlkern").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    return {module_of(path.relative_to(ROOT)): path for path in found}


def imported_modules(text: str) -> set[str]:
    """Returns the modules of the package that a text imports, also where only types are wanted."""
    found = set()
    for name in imported(ast.parse(text)):
        while name and name not in modules():
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {""}


@cache
def imports_of_the_tree() -> dict[str, set[str]]:
    return {m: imported_modules(p.read_text(encoding="utf-8")) for m, p in modules().items()}


def circles(path: Path, text: str) -> list[str]:
    own = module_of(path)
    graph = {**imports_of_the_tree(), own: imported_modules(text) - {own}}
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
    names = [n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    snakes = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in names}
    return [] if path.stem in snakes else [f"{path} does not define {path.stem}"]


def other_doors(path: Path, text: str) -> list[str]:
    offences = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or node.module in NO_DOORS:
            continue
        stem = str(node.module).rpartition(".")[2]
        for name in (alias.name for alias in node.names if alias.name.islower()):
            if FAMILIES.get(name, name) != stem:
                offences.append(f"{path}: {name} is defined in {node.module}")
    return offences
