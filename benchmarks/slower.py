# SPDX-License-Identifier: Apache-2.0
"""Where another way was faster than rlkern, found among the rows."""

from collections.abc import Iterator

from benchmarks import report
from benchmarks.rivals import pair
from benchmarks.tables import times_of


def found(rows: dict[str, dict[str, float]]) -> Iterator[tuple[str, str, str, float]]:
    """Yields (operation, size, who, our time / theirs) of what is faster elsewhere.

    rows  {operation and size: {row: its milliseconds}}; without an operation our row names it
    """
    for group, ms in rows.items():
        for name, theirs in ms.items():
            who, ours = pair(name, ms) or ("", name)
            if theirs < ms[ours]:
                operation, _, size = group.removeprefix("calls ").partition(" ")
                form = ours.removeprefix("rlkern").removesuffix("_in_place").removeprefix("_")
                names = dict.fromkeys(name for name in (operation, form) if name)
                yield ", ".join(names), size, who, ms[ours] / theirs


def lines(where: str, rows: dict[str, dict[str, float]]) -> list[str]:
    """Returns a line for each operation and rival: the sizes, and how many times faster.

    >>> rows = {"policy_loss 1920x21 float32": {"torch_compile": 2.0, "rlkern_in_place": 3.0}}
    >>> lines("AVX2", rows)
    ['- AVX2, policy loss: torch.compile is faster at 1920 × 21 float32 (1.50 times)']
    >>> lines("AVX2", {"policy_loss 1x2": {"eager": 3.0, "rlkern_in_place": 2.0}})
    []
    """
    grouped: dict[tuple[str, str], list[str]] = {}
    for operation, size, who, ratio in found(rows):
        words = size.replace("x", " × ")
        grouped.setdefault((operation, who), []).append(f"{words} ({times_of(ratio)} times)")
    return [
        f"- {where}, {operation.replace('_', ' ')}: {who} is faster at {', '.join(sizes)}"
        for (operation, who), sizes in grouped.items()
    ]


def called(where: dict) -> str:
    """Returns what a processor is called: two makers have the same instruction sets."""
    return f"{where['cpu']}, {where['isa']}"


def of_processor(times: report.Times) -> dict[str, dict[str, float]]:
    """Returns the medians of a processor's rows."""
    return {group: {name: t.median for name, t in ms.items()} for group, ms in times.items()}


def of_gpu(records: list[dict]) -> dict[str, dict[str, float]]:
    """Returns the times of a GPU's rows by shape.

    >>> of_gpu([{"row": "eager_gae", "shape": [8, 2], "ms": 1.0}])
    {' 8x2': {'eager_gae': 1.0}}
    """
    rows: dict[str, dict[str, float]] = {}
    for x in records:
        if "ms" in x:
            rows.setdefault(" " + "x".join(map(str, x["shape"])), {})[x["row"]] = x["ms"]
    return rows
