# SPDX-License-Identifier: Apache-2.0
"""Writes the numbers and plots of docs/benchmarks.md and README.md from the committed rows.

python -m benchmarks.readme

What stands between the two marks comes from benchmarks/results/*.jsonl and from nowhere else. The
page has a table for each question, README.md a short one and a plot.
"""

import argparse
from pathlib import Path

from benchmarks import page, report
from benchmarks.page import CPU, gpu_files, last_run, latest
from benchmarks.tables import IN_PLACE, markdown, number
from rlkern.runs.files import write_text

ROOT = Path(__file__).resolve().parents[1]
README, PAGE = ROOT / "README.md", ROOT / "docs/benchmarks.md"
BEGIN = "<!-- numbers: written by `python -m benchmarks.readme` -->"
END = "<!-- end of numbers -->"

# {what the short table calls it: (row of rlkern, rows of the others)}; of a GPU the names differ.
_SHORT = ("eager", "torch.compile", "Liger")
_CPU_ROWS = {"GRPO, loss and gradient": (IN_PLACE, ("eager", "torch_compile", None))}
_GPU_ROWS = {
    "GRPO, loss and gradient": (
        "rlkern_policy_loss_in_place",
        ("eager_policy_loss", "compile_policy_loss", "liger_policy_loss_in_place"),
    ),
    "GSPO, loss and gradient": (
        "rlkern_gspo_in_place", ("eager_gspo", "compile_gspo", "liger_gspo_in_place"),
    ),
    "log-probability and entropy": (
        "rlkern_logprob_and_entropy",
        ("eager_logprob_and_entropy", "compile_logprob_and_entropy", None),
    ),
    "GAE": ("rlkern_gae", ("eager_gae", None, None)),
}  # fmt: skip


def short(folder: Path = report.RESULTS) -> str:
    """Returns what stands between the marks of README.md: one size for each device."""
    rows = []
    where, times = latest(folder / CPU)
    ms = times.get("policy_loss 512x151936 bfloat16", {})
    for what, (ours, them) in _CPU_ROWS.items():
        if ours in ms:
            cells = [number(ms[row].median) if row in ms else "–" for row in them]
            device = f"{where['cpu']}, {where['threads']} threads, {where['isa']}"
            rows.append([device, f"{what}, 512 × 151936", number(ms[ours].median), *cells])
    for path in gpu_files(folder):
        lines = last_run(path)  # as on the page
        shapes: dict[str, tuple[str, float]] = {}
        for line in lines:
            if "ms" in line:
                shapes[line["row"]] = (" × ".join(map(str, line["shape"])), line["ms"])
        for what, (ours, them) in _GPU_ROWS.items():
            if ours in shapes:
                size, time = shapes[ours]
                others_ = [shapes[row][1] if row and row in shapes else None for row in them]
                rows.append([lines[-1]["device"], f"{what}, {size}", number(time),
                             *map(number, others_)])  # fmt: skip
    head = ["device", "bfloat16 (GAE float32)", "rlkern, ms", *_SHORT]
    table, plot = markdown(head, rows), page.drawn(folder).get("vocabulary")
    return table if plot is None else f"{table}\n\n{plot.markup('docs/benchmarks')}"


def written(text: str, block: str) -> str:
    """Returns the text with what stands between its marks replaced.

    >>> written(f"a {BEGIN} old {END} b", "new").replace(BEGIN, "[").replace(END, "]").split()
    ['a', '[', 'new', ']', 'b']
    """
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the document must have a line {BEGIN} and after it a line {END}")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def write() -> None:
    """Rewrites docs/benchmarks.md with its plots, and README.md."""
    for path, block in ((PAGE, page.numbers()), (README, short())):
        write_text(path, written(path.read_text(encoding="utf-8"), block))
    for plot in page.drawn().values():
        plot.write(page.PICTURES)


def main() -> None:
    """Writes the documents from the rows on record."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    try:
        write()
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
