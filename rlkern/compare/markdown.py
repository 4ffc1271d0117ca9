# SPDX-License-Identifier: Apache-2.0
"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of Markdown; a bar inside a cell stays a bar.

    >>> print(table(("a", "b"), [("1", "2")]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in r] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def thousands(value: float) -> str:
    """Returns a count in thousands.

    >>> thousands(12_345), thousands(0)
    ('12k', '0')
    """
    return f"{value / 1000:.0f}k" if value >= 1000 else f"{value:.0f}"


def escaped(text: str) -> str:
    """Returns text whose stars stay stars.

    >>> escaped("V* and a_b")
    'V\\\\* and a_b'
    """
    return text.replace("*", "\\*")


def link(name: str) -> str:
    """Returns a link from algorithms.md to the page of an algorithm.

    >>> link("x")
    '[x](algorithms/x.md)'
    """
    return f"[{name}](algorithms/{name}.md)"
