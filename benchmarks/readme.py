# SPDX-License-Identifier: Apache-2.0
"""Writes the numbers of docs/benchmarks.md and README.md from the committed rows.

python -m benchmarks.readme

What stands between the two marks comes from benchmarks/results/*.jsonl and from nowhere else. The
page has every number and a plot, README.md a short table.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import promises, report, vocabulary_plot

ROOT = Path(__file__).resolve().parents[1]
README, PAGE, PLOT = ROOT / "README.md", ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks.png"
BEGIN = "<!-- numbers: written by `python -m benchmarks.readme` -->"
END = "<!-- end of numbers -->"
MEMCPY, IN_PLACE = "memcpy_of_the_logits", "rlkern_in_place"
SIZE_COLUMNS = {
    "memcpy of the logits": MEMCPY,
    "rlkern, in place": IN_PLACE,
    "rlkern, fresh buffer": "rlkern_into_a_fresh_buffer",
    "eager": "eager",
    "`torch.compile`": "torch_compile",
}
# {what is computed: (row of rlkern, row of eager PyTorch)}
FORMS = {
    "GRPO, loss and gradient in place": (IN_PLACE, "eager"),
    "GRPO, loss alone": ("rlkern_forward_only", None),
    "log-probability and entropy": (
        "rlkern_logprob_and_entropy", "eager_logprob_and_entropy"),
    "GSPO, loss and gradient in place": ("rlkern_gspo_in_place", "eager_gspo"),
    "GRPO among 64 kept ids, in place": ("rlkern_kept_set_in_place", "eager_kept_set"),
    "GRPO with a softcap, in place": ("rlkern_softcap_in_place", "eager_softcap"),
    "GRPO in place, AVX2 alone": ("rlkern_in_place_avx2", None),
    "GRPO in place, code for any processor": ("rlkern_in_place_baseline", None),
}  # fmt: skip


def latest(path: Path) -> tuple[dict, report.Times]:
    """Returns the machine that wrote last, and all rows of it."""
    lines = report.records(path)
    return (lines[-1], report.on_record(path, lines[-1])) if lines else ({}, {})


def ms_of(timing: report.Timing | None) -> str:
    """Returns the median with what lies between a fifth and four fifths of the rounds; of a time
    without a spread the one number that is known.

    >>> ms_of(report.Timing(19.26, 18.1, 21.04, 17.9)), ms_of(None)
    ('19.3 (18.1–21)', '–')
    """
    if timing is None:
        return "–"
    if timing.p20 == timing.p80:
        return number(timing.median)
    return f"{number(timing.median)} ({number(timing.p20)}–{number(timing.p80)})"


def number(x: float | None) -> str:
    """Returns three digits of x, and a dash for nothing.

    >>> number(19.2585), number(427.8), number(0.00294), number(1234.5), number(None)
    ('19.3', '428', '0.00294', '1234', '–')
    """
    if x is None:
        return "–"
    return f"{x:.0f}" if x >= 1000 else f"{x:.3g}"


def quotient(x: report.Timing | None, y: report.Timing | None) -> str:
    """Returns the medians' x / y with one decimal, two below 10."""
    if x is None or y is None:
        return "–"
    ratio = x.median / y.median
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def policy_groups(times: report.Times) -> list[tuple[int, int, str, str]]:
    """Returns (V, N, dtype, group) of the losses that were timed, small vocabularies first."""
    found = []
    for group in times:
        words = group.split()
        if words[0] == "policy_loss" and len(words) == 3:
            n, v = words[1].split("x")
            found.append((int(v), int(n), words[2], group))
    return sorted(found, key=lambda x: (*x[:2], promises.DTYPES.index(x[2])))


def sizes(times: report.Times) -> str:
    """Returns loss and gradient of GRPO at every vocabulary."""
    head = ["N × V", *SIZE_COLUMNS, "eager / in place", "compile / in place"]
    rows = []
    for v, n, dtype, group in policy_groups(times):
        ms = times[group]
        cells = [ms_of(ms.get(row)) for row in SIZE_COLUMNS.values()]
        ratios = [quotient(ms.get(x), ms.get(IN_PLACE)) for x in ("eager", "torch_compile")]
        rows.append([f"{n} × {v} {dtype}", *cells, *ratios])
    return markdown(head, rows)


def forms(times: report.Times) -> str:
    """Returns what else the pass over the logits can do, as multiples of the memcpy."""
    head = ["512 × 151936"]
    for dtype in promises.DTYPES:
        head += [f"{dtype}, ms", "÷ memcpy", "eager, ms"]
    rows = []
    for name, (ours, eager) in FORMS.items():
        cells = [name]
        for dtype in promises.DTYPES:
            ms = times.get(f"policy_loss 512x151936 {dtype}", {})
            cells += [ms_of(ms.get(ours)), quotient(ms.get(ours), ms.get(MEMCPY))]
            cells.append(ms_of(ms.get(eager)) if eager else "")
        if set(cells[1:]) - {"–", ""}:
            rows.append(cells)
    return markdown(head, rows)


def checks(times: report.Times) -> str:
    """Returns the bounds of 512 × 151936 with what was measured."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for verdict in promises.verdicts(times):
        group, above, below, sign, limit, promised = verdict.check
        if "512x151936" in group:
            what = f"{above} / {below}".replace("_", " ")
            bound = f"{'≤' if sign == '<=' else '≥'} {limit}"
            cell = f"{verdict.ratio:.2f} ({bound}){'' if verdict.held else ' **missed**'}"
            cells = rows.setdefault((what, "promise" if promised else "goal"), {})
            cells[group.split()[-1]] = cell
    head = ["ratio", "", *promises.DTYPES]
    return markdown(
        head, [[*k, *(c.get(d, "–") for d in promises.DTYPES)] for k, c in rows.items()]
    )


def others(times: report.Times) -> list[str]:
    """Returns a table for each other operation: a line for each size, a column for each way."""
    found: dict[str, dict[str, dict[str, report.Timing]]] = {}
    for group, ms in sorted(times.items()):
        operation, _, size = group.partition(" ")
        if operation != "policy_loss":
            named = {name.replace("_", " "): x for name, x in ms.items()}
            found.setdefault(operation, {})[size] = named
    tables = []
    for operation, sizes_of in found.items():
        columns = list(dict.fromkeys(name for ms in sizes_of.values() for name in ms))
        rows = [[size, *(ms_of(ms.get(c)) for c in columns)] for size, ms in sizes_of.items()]
        tables.append(f"### {operation.replace('_', ' ')}, ms")
        tables.append(markdown(["size", *columns], rows))
    return tables


def cpu(path: Path) -> list[str]:
    """Returns the paragraphs of the processor that was measured last."""
    where, times = latest(path)
    if not times:
        return []
    source = f"`benchmarks/results/{path.name}`"
    return [
        "## Loss and gradient over a vocabulary",
        "Loss and gradient of GRPO with a KL term, milliseconds, the median and in brackets what a "
        "fifth and four fifths of the rounds take; a number without brackets is the fastest round, "
        "which is all that was kept of it. One run of "
        f"`make bench` on {where['cpu']}, {where['threads']} threads, {where['isa']}, torch "
        f"{where['torch']}, rows of {source}:",
        sizes(times),
        "## Other forms of the pass",
        "The other forms that one pass over the logits takes, in the same run:",
        forms(times),
        "## Promises",
        "What the project promises and what it aims at (`make bench` fails on a broken promise):",
        checks(times),
        "## Beside the logits",
        *others(times),
    ]


def gpu(path: Path) -> list[str]:
    """Returns the paragraphs of one GPU: the last run that its file holds."""
    lines = report.records(path)
    last = [
        x for x in lines if (x["date"], x["commit"]) == (lines[-1]["date"], lines[-1]["commit"])
    ]
    where = last[-1]
    rows = [
        [x["row"].replace("_", " "), " × ".join(map(str, x["shape"])), number(x["ms"]),
         number(x.get("goal_ms")), f"{x['share_of_bound']:.0%}" if "share_of_bound" in x else "–",
         number(x.get("tflops"))]
        for x in last if "ms" in x
    ]  # fmt: skip
    head = ["row", "shape", "ms", "goal, ms", "of the bound", "TFLOP/s"]
    return [
        f"## {where['device']}",
        f"{where['device']}, bfloat16 (scans float32), median of `make gpu`, torch "
        f"{where['torch']}, rows of `benchmarks/results/{path.name}`; the bound is the time in "
        "which the bytes that cannot be avoided pass through the memory at its nominal rate:",
        markdown(head, rows),
    ]


def gpu_files(folder: Path) -> list[Path]:
    """Returns the files of GPUs: their rows name a device."""
    return [path for path in sorted(folder.glob("*.jsonl")) if "device" in report.records(path)[0]]


def numbers(folder: Path = report.RESULTS) -> str:
    """Returns what stands between the marks of the page."""
    paragraphs = cpu(folder / "cpu.jsonl")
    for path in gpu_files(folder):
        paragraphs += gpu(path)
    return "\n\n".join(paragraphs)


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
    where, times = latest(folder / "cpu.jsonl")
    ms = times.get("policy_loss 512x151936 bfloat16", {})
    for what, (ours, them) in _CPU_ROWS.items():
        if ours in ms:
            cells = [number(ms[row].median) if row in ms else "–" for row in them]
            device = f"{where['cpu']}, {where['threads']} threads"
            rows.append([device, f"{what}, 512 × 151936", number(ms[ours].median), *cells])
    for path in gpu_files(folder):
        lines = report.records(path)
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
    return markdown(head, rows)


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
    """Rewrites docs/benchmarks.md with its plot, and README.md."""
    for path, block in ((PAGE, numbers()), (README, short())):
        path.write_text(written(path.read_text(encoding="utf-8"), block), encoding="utf-8")
    times = latest(report.RESULTS / "cpu.jsonl")[1]
    vocabulary_plot.draw(times, [g for g in policy_groups(times) if g[2] == "bfloat16"], PLOT)


if __name__ == "__main__":
    write()
