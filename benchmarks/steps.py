# SPDX-License-Identifier: Apache-2.0
"""Where the time of a whole training step goes, from the rows of `python -m benchmarks.end_to_end`.

What was sampled, and what that took, is known of both sides; TRL grades answers in the method that
samples them. Its loss, gradient and optimizer are not told apart by a public hook, so the rest of
its step is one part.
"""

from benchmarks import plots
from benchmarks.tables import markdown, number, times_of

PARTS = {
    "rollout": "rollout", "grading": "reward", "score": "loss", "loss": "loss", "step": "optimizer",
}  # fmt: skip
COLUMNS = ("rollout", "reward", "loss", "optimizer", "rest", "loss, optimizer, rest")
# {case: (what to reach of TRL's time over ours, or of our sampling over generate's)}
GOALS = {"wide": 8.0, "short": 5.0, "long": 2.5, "generate": 1.2, "ends": 1.5}
BEFORE_MIB = 700  # memory before the first step, to be at most
IDENTITY = ("cpu", "threads")


def latest(records: list[dict]) -> dict[str, dict]:
    """Returns the last line of each case and dtype, the cases in the order of GOALS, of the machine
    that wrote last: lines of another do not compare.

    >>> one = {"cpu": "C", "threads": 2, "case": "wide", "dtype": "mixed"}
    >>> lines = [one | {"cpu": "D", "case": "long"}, one | {"n": 1}, one | {"n": 2}]
    >>> {name: x["n"] for name, x in latest(lines).items()}
    {'wide, mixed': 2}
    """
    own = [x for x in records if all(x[key] == records[-1][key] for key in IDENTITY)]
    last = {(x["case"], x["dtype"]): x for x in own}
    order = sorted(last, key=lambda x: (list(GOALS).index(x[0]), x[1]))
    return {f"{case}, {dtype}": last[case, dtype] for case, dtype in order}


def reached(record: dict) -> str:
    """Returns a record's ratio and the goal of its case.

    >>> reached({"case": "wide", "ratio": 7.5})
    '7.50 (≥ 8) **missed**'
    """
    goal = GOALS[record["case"]]
    missed = " **missed**" if record["ratio"] < goal else ""
    return f"{times_of(record['ratio'])} (≥ {goal:g}){missed}"


def parts(side: dict[str, float]) -> dict[str, float]:
    """Returns the seconds of a step by part; what no part holds is the rest, in which loss and
    optimizer are where they were not told apart.

    >>> parts({"seconds": 5.0, "rollout": 2.0, "score": 0.5, "loss": 1.5, "step": 0.5})
    {'rollout': 2.0, 'loss': 2.0, 'optimizer': 0.5, 'rest': 0.5}
    >>> parts({"seconds": 5.0, "rollout": 2.0})
    {'rollout': 2.0, 'loss, optimizer, rest': 3.0}
    """
    found: dict[str, float] = {}
    for key, name in PARTS.items():
        if key in side:
            found[name] = found.get(name, 0.0) + side[key]
    rest = "rest" if "loss" in found else "loss, optimizer, rest"
    return found | {rest: round(max(side["seconds"] - sum(found.values()), 0.0), 6)}


def table(records: list[dict]) -> str:
    """Returns seconds by part and memory of each side of a step."""
    rows = []
    for case, record in latest(records).items():
        for who in ("rlkern", "trl"):
            if who in record and "rollout" in record[who]:
                side = record[who]
                own = parts(side)
                ratio = reached(record) if who == "rlkern" else ""
                before = number(side["before_mib"])
                if who == "rlkern":
                    missed = " **missed**" if side["before_mib"] > BEFORE_MIB else ""
                    before += f" (≤ {BEFORE_MIB}){missed}"
                rows.append([
                    case, who, number(side["seconds"]), *(number(own.get(x)) for x in COLUMNS),
                    number(side["tokens_a_second"]), before, number(side["peak_mib"]),
                    number(side.get("reward")), ratio,
                ])  # fmt: skip
    head = ["case", "", "s a step", *COLUMNS, "tokens/s", "MiB before step 1", "peak MiB",
            "reward", "TRL / rlkern"]  # fmt: skip
    return markdown(head, rows) if rows else ""


def sampling(records: list[dict]) -> str:
    """Returns the tokens a second of sampling alone."""
    rows = [
        [case, *(number(x[who]["tokens_a_second"]) for who in ("rlkern", "generate")), reached(x)]
        for case, x in latest(records).items() if "generate" in x
    ]  # fmt: skip
    head = ["case", "rlkern, tokens/s", "`model.generate`, tokens/s", "ratio"]
    return markdown(head, rows) if rows else ""


def plot(records: list[dict]) -> list[plots.Plot]:
    """Returns a bar for each side of a step; nothing without rows."""
    stacks = [
        (f"{'TRL' if who == 'trl' else who}, {case}", parts(record[who]))
        for case, record in latest(records).items()
        for who in ("rlkern", "trl")
        if who in record and "rollout" in record[who]
    ]
    title = "A step of SmolLM2-135M: seconds by part"
    return [plots.bars("step", title, "seconds", stacks)] if stacks else []


def slower(records: list[dict]) -> list[str]:
    """Returns a line for each case whose other side is faster."""
    lines = []
    for case, x in latest(records).items():
        if x["ratio"] < 1:
            whom = "`model.generate`" if "generate" in x else "TRL"
            lines.append(
                f"- whole steps, {case}: {whom} is faster ({times_of(1 / x['ratio'])} times)"
            )
    return lines
