# SPDX-License-Identifier: Apache-2.0
"""The ratios that `make bench` holds the project to, and what a run says of them."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from benchmarks.report import Times, ceiling
from benchmarks.rivals import pair

# What p20 and p80 leave of a ratio at least, the ratio of the medians, and at most.
Spread = tuple[float, float, float]


class Check(NamedTuple):
    """A ratio of two rows of a group, and what it is to be.

    promised  the project gives its word: a miss makes the run fail. What is not promised is a goal,
              whose miss is printed alike, but the yardstick itself moves (LOG.md)
    """

    group: str
    above: str
    below: str
    sign: str
    limit: float
    promised: bool

    def ratio(self, times: Times) -> float | None:
        """Returns the ratio of the medians, or None if a row of it was not measured."""
        spread = self.spread(times)
        return None if spread is None else spread[1]

    def spread(self, times: Times) -> Spread | None:
        """Returns the least and the largest ratio that p20 and p80 leave, the median's between."""
        rows = times.get(self.group, {})
        if self.above not in rows or self.below not in rows:
            return None
        a, b = rows[self.above], rows[self.below]
        return a.p20 / b.p80, a.median / b.median, a.p80 / b.p20

    def holds(self, ratio: float) -> bool:
        """Whether the ratio is on the right side of the limit."""
        return ratio <= self.limit if self.sign == "<=" else ratio >= self.limit


def _main(dtype: str) -> str:
    return f"policy_loss 512x151936 {dtype}"


# (row, its divisor, sign, limits in float32 and bfloat16), of 512 × 151936.
GOALS = (
    ("rlkern_in_place", "memcpy_of_the_logits", "<=", 1.3, 2.0),
    ("rlkern_forward_only", "memcpy_of_the_logits", "<=", 1.0, 1.5),
    ("rlkern_logprob_and_entropy", "memcpy_of_the_logits", "<=", 1.0, 1.5),
    ("rlkern_gspo_in_place", "memcpy_of_the_logits", "<=", 2.0, 3.5),
)
PROMISES = (
    ("rlkern_in_place", "memcpy_of_the_logits", "<=", 1.5, 2.8),
    ("eager", "rlkern_in_place", ">=", 6.0, 14.0),
    ("torch_compile", "rlkern_in_place", ">=", 8.0, 5.0),
    ("rlkern_in_place_avx2", "rlkern_in_place_best", "<=", 2.0, 2.0),
)
# At every other vocabulary of a model the loss beats torch.compile, at the tiny one eager.
BEATEN = {
    "torch_compile": (
        "8192x1000", "8192x4096", "2048x32000", "1024x50257", "512x129920", "256x262144",
    ),
    "eager": ("1920x21",),
}  # fmt: skip
DTYPES = ("float32", "bfloat16")
# (rows of hidden states, row, its divisor, sign, limits), of H = 896 and V = 151 936.
LINEAR = (
    (512, "rlkern", "three_products", "<=", 1.08, 1.25),
    (512, "rlkern_frozen_head", "two_products", "<=", 1.08, 1.25),
    *((rows, "eager", "rlkern", ">=", 1.0, 1.0) for rows in (64, 128, 512)),
)
# Half the bandwidth of a memcpy of the bytes that must move, and never slower than eager.
SWEPT = ("rlkern_gae", "rlkern_gae_into_memory_in_use")
SCANS = ("1x1", "8x4096", "512x4096", "8192x1024", "1x1000000")
CHECKS = [
    Check(_main(dtype), above, below, sign, limits[i], table is PROMISES)
    for table in (GOALS, PROMISES)
    for above, below, sign, *limits in table
    for i, dtype in enumerate(DTYPES)
] + [
    Check(f"policy_loss {size} {dtype}", row, "rlkern_in_place", ">=", 1.0, True)
    for row, sizes in BEATEN.items()
    for size in sizes
    for dtype in DTYPES
]
CHECKS += [
    Check(f"linear_policy_loss {n}x896x151936 {dtype}", above, below, sign, limits[i], False)
    for n, above, below, sign, *limits in LINEAR
    for i, dtype in enumerate(DTYPES)
]
CHECKS += [
    Check("gae 8192x1024", row, "memcpy_of_the_bytes_moved", "<=", 2.0, False) for row in SWEPT
] + [Check(f"gae {shape}", "eager_gae", "rlkern_gae", ">=", 1.0, False) for shape in SCANS]


# No slower than what a researcher would write, where a call costs more than its arithmetic.
CALLS = ("32x2", "256x6", "2048x18", "4096x2", "4096x64")
CHECKS += [
    Check(f"calls {op} {size}", f"{other}_{op}", f"rlkern_{op}", ">=", 1.0, False)
    for op in ("policy_loss", "td_loss")
    for size in CALLS
    for other in ("eager", "torch_compile")
]


# A row of somebody else that ends sooner says what a call costs, not what a sweep does: the copy of
# 1920 × 21 takes 3 µs, eager's scan of one number 0.2. For calls there are rows of their own.
SHORTEST_MS = 0.01


class Verdict(NamedTuple):
    """What a check found."""

    check: Check
    ratio: float

    @property
    def held(self) -> bool:
        """Whether the ratio is what it is to be."""
        return self.check.holds(self.ratio)

    @property
    def broken(self) -> bool:
        """Whether a promise does not hold."""
        return self.check.promised and not self.held

    def __str__(self) -> str:
        group, above, below, sign, limit, promised = self.check
        label = "held" if self.held else "MISSED" if promised else "MISSED (a goal)"
        return f"{label:<16}{group}: {above} / {below} = {self.ratio:.2f} ({sign} {limit})"


def compared(times: Times) -> list[Check]:
    """Returns every ratio that is held to the record: the checks, each row of somebody else over
    ours, and the ceiling over those rows of ours that nobody stands beside. Beyond the checks, what
    takes less than SHORTEST_MS is no yardstick.

    >>> from benchmarks.report import Timing
    >>> one = Timing(1, 1, 1, 1)
    >>> rows = {"memcpy_of_x": one, "rlkern_a": one, "eager_a": one, "rlkern_b": one}
    >>> [(x.above, x.below) for x in compared({"g": rows})]
    [('eager_a', 'rlkern_a'), ('memcpy_of_x', 'rlkern_b')]
    """
    found = [check for check in CHECKS if check.ratio(times) is not None]
    known = {(x.group, *sorted((x.above, x.below))) for x in found}
    for group, rows in times.items():
        pairs = [(name, pair(name, rows)) for name in rows]
        beside = [(name, ours[1]) for name, ours in pairs if ours is not None]
        best = ceiling(rows)
        alone = {x for x in rows if x.startswith("rlkern")} - {ours for _, ours in beside}
        if best is not None:
            beside += [(best, name) for name in rows if name in alone]
        found += [
            Check(group, above, below, ">=", 1.0, promised=False)
            for above, below in beside
            if (group, *sorted((above, below))) not in known and rows[above].median >= SHORTEST_MS
        ]  # fmt: skip
    return list(dict.fromkeys(found))


def fallen(times: Times, before: Times) -> dict[str, list[str]]:
    """Returns {group: a line for each ratio that is worse than on record by more than both their
    spreads}.

    >>> from benchmarks.report import Timing
    >>> def of(ms):
    ...     copy, ours = Timing(1, 1, 1, 1), Timing(ms, ms, ms, ms)
    ...     rows = {"memcpy_of_the_logits": copy, "rlkern_in_place": ours}
    ...     return {"policy_loss 512x151936 float32": rows}
    >>> (lines,) = fallen(of(4), of(2)).values()
    >>> [line.split(" = ")[1] for line in lines]
    ['4 (4–4), on record 2 (2–2)']
    """
    return _worse(times, before, "FELL", lambda check, now: now[0 if check.sign == "<=" else 2])


def doubtful(times: Times, before: Times) -> list[str]:
    """Returns a line for each ratio whose median is worse than all of the spread on record,
    while the run's own spread reaches into it: a fall that this run was too restless to see.

    >>> from benchmarks.report import Timing
    >>> def of(slowest):
    ...     copy, ours = Timing(1, 1, 1, 1), Timing(slowest, 1, slowest, 1)
    ...     rows = {"memcpy_of_the_logits": copy, "rlkern_in_place": ours}
    ...     return {"policy_loss 512x151936 float32": rows}
    >>> [line.split(" = ")[1] for line in doubtful(of(4), of(2))]
    ['4 (1–4), on record 2 (1–2)']
    """
    fell = fallen(times, before)
    lines = _worse(times, before, "IN DOUBT", lambda _, now: now[1])
    return [line for group, found in lines.items() if group not in fell for line in found]


def _worse(
    times: Times, before: Times, word: str, at: Callable[[Check, Spread], float]
) -> dict[str, list[str]]:
    """Returns {group: lines} of the ratios that are at this point outside the spread on record."""
    found: dict[str, list[str]] = {}
    for check in compared(times):
        now, then = check.spread(times), check.spread(before)
        if now is None or then is None:
            continue
        x = at(check, now)
        if x > then[2] if check.sign == "<=" else x < then[0]:
            found.setdefault(check.group, []).append(line(word, check, now, "on record", then))
    return {group: list(dict.fromkeys(lines)) for group, lines in found.items()}


def line(word: str, check: Check, now: Spread, when: str, then: Spread) -> str:
    """Returns what a ratio was, and is."""
    ratio = f"{check.above} / {check.below}"
    return f"{word:<16}{check.group}: {ratio} = {_three(now)}, {when} {_three(then)}"


def gone(times: Times, before: Times, groups: Iterable[str]) -> dict[str, str]:
    """Returns {group: a line} for each with rows on record that this run did not time: no ratio of
    theirs would be held to anything.

    groups  those that the run was asked for

    >>> from benchmarks.report import Timing
    >>> one = Timing(1, 1, 1, 1)
    >>> gone({"g": {"a": one}}, {"g": {"a": one, "b": one}, "h": {"c": one}}, ["g"])
    {'g': 'GONE            g: b'}
    """
    lost = {group: before[group].keys() - times.get(group, {}).keys() for group in groups}
    return {
        group: f"GONE{'':<12}{group}: {', '.join(sorted(rows))}"
        for group, rows in lost.items() if rows
    }  # fmt: skip


def _three(spread: Spread) -> str:
    low, middle, high = spread
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def verdicts(times: Times) -> list[Verdict]:
    """Returns the ratio of each check whose rows were measured."""
    ratios = [(check, check.ratio(times)) for check in CHECKS]
    return [Verdict(check, ratio) for check, ratio in ratios if ratio is not None]
