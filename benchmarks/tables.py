# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/benchmarks.md that come from the rows of processors."""

import re
from collections.abc import Iterable, Sequence

from benchmarks import promises, report

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
# {operations of a table: the question it answers}; another operation asks by its name.
QUESTIONS = {
    ("linear_policy_loss",): "How fast is the loss from hidden states and a head?",
    ("calls",): "How fast are small batches, where a call costs more than its arithmetic?",
    ("gae",): "How fast is GAE?",
    ("reverse_scan",): "How fast is the scan under GAE and the returns?",
    ("group_advantage",): "How fast are the advantages of groups?",
    ("sampling", "refill_index", "refill_multiplicity"): (
        "How fast are the groups of DAPO and DUPO chosen?"),
    ("value_loss",): "How fast is the loss of values?",
    ("preference_loss",): "How fast is the loss of preferences?",
}  # fmt: skip
# Groups whose ratio to others is shown for each processor: (group, ours, the other).
COMPARED = (
    *((f"policy_loss 512x151936 {dtype}", IN_PLACE, other)
      for dtype in promises.DTYPES for other in (MEMCPY, "eager", "torch_compile")),
    *((f"linear_policy_loss 512x896x151936 {dtype}", "rlkern", other)
      for dtype in promises.DTYPES for other in ("eager", "three_products")),
    ("gae 8192x1024", "rlkern_gae", "eager_gae"),
)  # fmt: skip


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
    return "–" if x is None or y is None else times_of(x.median / y.median)


def times_of(ratio: float) -> str:
    """Returns a ratio with one decimal, two below 10.

    >>> times_of(1.234), times_of(12.34)
    ('1.23', '12.3')
    """
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
    """Returns every bound with what was measured; what has no dtype in its name is float32."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for verdict in promises.verdicts(times):
        group, above, below, sign, limit, promised = verdict.check
        words = group.replace("x", " × ").split()
        dtype = words.pop() if words[-1] in promises.DTYPES else promises.DTYPES[0]
        where, what = (x.replace("_", " ") for x in (" ".join(words), f"{above} / {below}"))
        bound = f"{'≤' if sign == '<=' else '≥'} {limit}"
        cell = f"{verdict.ratio:.2f} ({bound}){'' if verdict.held else ' **missed**'}"
        rows.setdefault((where, what, "promise" if promised else "goal"), {})[dtype] = cell
    head = ["where", "ratio", "", *promises.DTYPES]
    cells = [[*what, *(c.get(d, "–") for d in promises.DTYPES)] for what, c in rows.items()]
    return markdown(head, cells)


def by_number(group: str) -> list[str | int]:
    """Returns what groups are sorted by: their sizes are numbers.

    >>> sorted(["gae 512x4096", "gae 8x4096", "gae 8x512"], key=by_number)
    ['gae 8x512', 'gae 8x4096', 'gae 512x4096']
    """
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", group)]


def others(times: report.Times, pictures: dict[str, list[str]]) -> list[str]:
    """Returns a question and its table for each other operation: a line for each size, a column
    for each way.

    pictures  {operation: its plots}
    """
    found: dict[str, dict[str, dict[str, report.Timing]]] = {}
    for group, ms in sorted(times.items(), key=lambda item: by_number(item[0])):
        operation, _, size = group.partition(" ")
        if operation != "policy_loss":
            named = {name.replace("_", " "): x for name, x in ms.items()}
            found.setdefault(operation, {})[size] = named
    asked = dict(QUESTIONS)
    known = {operation for operations in asked for operation in operations}
    asked |= {(x,): f"How fast is {x.replace('_', ' ')}?" for x in found if x not in known}
    tables = []
    for operations, question in asked.items():
        lines = {
            (size if len(operations) == 1 else f"{operation.replace('_', ' ')}, {size}"): ms
            for operation in operations
            for size, ms in found.get(operation, {}).items()
        }
        if lines:
            columns = list(dict.fromkeys(name for ms in lines.values() for name in ms))
            rows = [[size, *(ms_of(ms.get(c)) for c in columns)] for size, ms in lines.items()]
            tables += [f"## {question}", *pictures.get(operations[0], [])]
            tables.append(markdown(["ms", *columns], rows))
    return tables


def processors(machines: Sequence[tuple[str, report.Times]]) -> str:
    """Returns ratios to others on every processor on record, and what p20 and p80 leave of them.

    machines  (what a column is called, its rows)
    """
    rows = []
    for group, ours, other in COMPARED:
        check = promises.Check(group, other, ours, ">=", 1.0, promised=False)
        cells = [_ratio(check.spread(times)) for _, times in machines]
        if set(cells) != {"–"}:
            what = f"{other} / {ours}".replace("_", " ")
            rows.append([group.replace("_", " "), what, *cells])
    return markdown(["", "ratio", *(name for name, _ in machines)], rows)


def _ratio(spread: tuple[float, float, float] | None) -> str:
    if spread is None:
        return "–"
    low, middle, high = map(times_of, spread)
    return middle if low == high else f"{middle} ({low}–{high})"
