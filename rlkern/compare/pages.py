# SPDX-License-Identifier: Apache-2.0
"""A page for each algorithm, made of its file, its declaration and the records of its runs.

python -m rlkern.compare.pages
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import rlkern
from rlkern.compare import figures, measure, overview
from rlkern.compare import notes as map_of_notes
from rlkern.compare.guide import to_watch
from rlkern.compare.markdown import escaped, table
from rlkern.compare.measure import Run
from rlkern.compare.plan import Comparison, load
from rlkern.compare.words import Declared, asks

RECORDS, OUT, CONFIG = Path(Comparison().records), Path(Comparison().out), "configs/compare.yaml"


def known() -> dict[str, Declared]:
    """Returns every registered algorithm by name, those that sample first."""
    return {**rlkern.algorithms(), **rlkern.offline_algorithms()}


def write(records: Path, out: Path, *, notes: dict[str, str]) -> None:
    """Writes algorithms.md, a page for each algorithm, and their figures; removes the pages of
    algorithms that are gone.
    """
    runs, folder = measure.load(records), out / "algorithms"
    folder.mkdir(parents=True, exist_ok=True)
    pages = texts(runs, notes)
    for path, text in pages.items():
        (out / path).write_text(text, encoding="utf-8")
    drawn = figures.draw(runs, known(), out)
    kept = {out / path for path in pages} | set(drawn)
    for old in [*folder.glob("*.md"), *folder.glob("*.png")]:
        if old not in kept:
            old.unlink()


def texts(runs: dict[str, list[Run]], notes: dict[str, str]) -> dict[str, str]:
    """Returns the pages by their path below the folder of the documents."""
    declared = known()
    pages = {"algorithms.md": overview.page(declared, runs, notes), "notes.md": map_of_notes.page()}
    for name, one in declared.items():
        pages[f"algorithms/{name}.md"] = page(one, runs.get(name, []), notes.get(name))
    return pages


def page(declared: Declared, runs: list[Run], note: str | None) -> str:
    """Returns the page of one algorithm."""
    module = importlib.import_module(f"rlkern.algorithms.{declared.name}")
    title, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
    parts = [
        f"# {title.rstrip('.')}",
        f"`--algorithm {declared.name}` · [all algorithms](../algorithms.md) ·"
        f" [source](../../rlkern/algorithms/{declared.name}.py)",
        as_markdown(rest),
        "## Defaults",
        _defaults(declared),
        "## What it asks of the trainer",
        "\n".join(f"- {ask}" for ask in asks(declared)),
        "## Run it",
        f"```sh\n{command(declared.name)}\n```",
        "## Metrics to watch",
        table(("metric", "meaning", "healthy"), _watched(declared)),
        "## Its curve",
        *_curve(declared, runs, note),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_markdown(text: str) -> str:
    """Returns a docstring as Markdown: paragraphs, equations and examples as blocks.

    >>> print(as_markdown("first line\\nsecond\\n\\n    x = 1"))
    first line second
    <BLANKLINE>
    ```text
    x = 1
    ```
    """
    blocks = [block for block in inspect.cleandoc("\n" + text).split("\n\n") if block.strip()]
    return "\n\n".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    lines = block.split("\n")
    if lines[0].startswith(">>> "):
        return f"```python\n{block.strip()}\n```"
    if all(line.startswith("    ") for line in lines if line.strip()):
        return f"```text\n{textwrap.dedent(block).strip()}\n```"
    return "\n".join(_paragraphs(lines))


def _paragraphs(lines: Sequence[str]) -> Iterable[str]:
    """Yields each run of plain lines as one line, and each run of indented ones as a block."""
    plain: list[str] = []
    indented: list[str] = []
    for line in [*lines, ""]:
        if line.startswith("    "):
            if plain:
                yield " ".join(plain)
                plain = []
            indented.append(line)
            continue
        if indented:
            yield "\n```text\n" + textwrap.dedent("\n".join(indented)) + "\n```\n"
            indented = []
        if line:
            plain.append(escaped(line.strip()))
    if plain:
        yield " ".join(plain)


def _defaults(declared: Declared) -> str:
    own = {"coefficient": declared.defaults, "setting": declared.settings}
    rows = [
        (f"`{name}`", kind, _value(value), escaped(declared.sources.get(name, "")))
        for kind, values in own.items()
        for name, value in values.items()
    ]
    if not rows:
        return "It has no coefficients and no settings of its own."
    return table(("key", "kind", "value", "source"), rows)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _watched(declared: Declared) -> list[tuple[str, str, str]]:
    return [(f"`{m.key}`", m.meaning, m.healthy) for m in to_watch(declared)]


def command(name: str) -> str:
    """Returns what trains with an algorithm: its recipe where the tree has one."""
    recipe = Path("configs") / "algorithms" / f"{name}.yaml"
    if (Path(__file__).resolve().parents[2] / recipe).is_file():
        return f"rlkern train --config {recipe.as_posix()}"
    return f"rlkern train --algorithm {name} --model tiny --task addition"


def _curve(declared: Declared, runs: list[Run], note: str | None) -> list[str]:
    if not runs:
        return [f"No run is on record. `rlkern compare --algorithms {declared.name}` makes them."]
    goal = measure.target(declared.learns_from)
    head = (
        "seed", "before", "after", f"seconds to {goal:g}", f"generated tokens to {goal:g}",
        "process seconds", "CPU seconds", "peak MiB",
    )  # fmt: skip
    text = [f"![Curves of {declared.name}]({declared.name}.png)"]
    rows = [overview.seed_row(run, goal) for run in runs]
    text += [table(head, rows), overview.settings_line(runs[0])]
    return [*text, note] if note else text


if __name__ == "__main__":
    write(RECORDS, OUT, notes=load(CONFIG).notes)
