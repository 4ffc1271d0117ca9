# SPDX-License-Identifier: Apache-2.0
"""Where the time of a whole training step goes, from the rows of `python -m benchmarks.end_to_end`.

What was sampled, and what that took, is known of both sides. TRL's loss, gradient and optimizer
are not told apart by a public hook, so the rest of its step is one part.
"""

from benchmarks import plots
from benchmarks.tables import markdown, number, times_of

PARTS = {
    "rollout": "rollout", "grading": "reward", "score": "loss", "loss": "loss", "step": "optimizer",
}  # fmt: skip
COLUMNS = ("rollout", "reward", "loss", "optimizer", "rest", "loss, optimizer, rest")
CASES = ("wide", "short", "long", "generate", "ends")


def latest(records: list[dict]) -> dict[str, dict]:
    """Returns the last line of each case, in the order of CASES."""
    last = {record["case"]: record for record in records}
    return {case: last[case] for case in CASES if case in last}


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
                ratio = times_of(record["ratio"]) if who == "rlkern" else ""
                rows.append([
                    f"{case}, {record['dtype']}", who, number(side["seconds"]),
                    *(number(own.get(x)) for x in COLUMNS),
                    number(side["tokens_a_second"]), number(side["peak_mib"]), ratio,
                ])  # fmt: skip
    head = ["case", "", "s a step", *COLUMNS, "tokens/s", "peak MiB", "TRL / rlkern"]
    return markdown(head, rows) if rows else ""


def sampling(records: list[dict]) -> str:
    """Returns the tokens a second of sampling alone."""
    rows = [
        [f"{case}, {x['dtype']}", number(x["rlkern"]["seconds"]), number(x["generate"]["seconds"]),
         times_of(x["ratio"])]
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
