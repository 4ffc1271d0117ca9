# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md: a table for each question and a plot for each axis, from the rows alone."""

from collections.abc import Callable
from pathlib import Path

from benchmarks import beside_peers, fields, models, plots, report, slower, steps
from benchmarks.tables import checks, forms, markdown, number, others, processors, sizes

PICTURES = Path(__file__).resolve().parents[1] / "docs/benchmarks"
CPU, STEPS, MEMORY = "cpu.jsonl", "end_to_end.jsonl", "memory.jsonl"
FASTEST = "rlkern is the fastest in every row."


def latest(path: Path) -> tuple[dict, report.Times]:
    """Returns the machine that wrote last, and all rows of it."""
    found = report.machines(path)
    return (found[0], report.on_record(report.records(path), found[0])) if found else ({}, {})


_KEPT = (
    "Rounds begin after a call that is not timed, and take the memory that the one before freed "
    "(`benchmarks/run.py` sets glibc's variables for it): how much fresh memory costs depends on "
    "the machine, and a virtual one can make it cost more than the loss (`benchmarks/LOG.md`)."
)


def drawn(folder: Path = report.RESULTS) -> dict[str, plots.Plot]:
    """Returns the plots that the rows allow, by name."""
    times = latest(folder / CPU)[1]
    found = [
        *plots.by_vocabulary(times),
        *plots.by_tokens(times),
        *plots.by_ceiling(times),
        *plots.by_memory(report.records(folder / MEMORY)),
        *steps.plot(report.records(folder / STEPS)),
    ]
    return {each.name: each for each in found}


def cpu(path: Path, shown: Callable[[str], list[str]]) -> list[str]:
    """Returns the paragraphs of the processor that was measured last, and of how others differ."""
    where, times = latest(path)
    if not times:
        return []
    spared: dict[str, list[str]] = {}
    for group, why in report.left_out(path, where).items():
        spared.setdefault(why, []).append(group.replace("_", " "))
    columns = [
        (slower.called(x), report.on_record(report.records(path), x)) for x in report.machines(path)
    ]
    return [
        "## How fast are the loss and its gradient over a vocabulary?",
        *shown("vocabulary"),
        "Loss and gradient of GRPO with a KL term, milliseconds, the median and in brackets what a "
        "fifth and four fifths of the rounds take. `make bench` on "
        f"{where['cpu']}, {where['threads']} threads, {where['isa']}, torch {where['torch']}, rows "
        f"of `benchmarks/results/{path.name}`; so are the tables up to the next processor:",
        sizes(times),
        "## What else can the pass over the logits do?",
        *shown("ceiling"),
        forms(times),
        "## What is promised?",
        "What the project promises and what it aims at. `make bench` fails on a broken promise, on "
        "a ratio that is worse than on record by more than both spreads, and on a row on record "
        "that it did not time; it names what is so far from the best run that was ever committed "
        "for such a machine.",
        checks(times),
        *others(times, {"linear_policy_loss": [*shown("tokens"), _KEPT]}),
        *(f"Left out: {', '.join(groups)} ({why})." for why, groups in spared.items()),
        "## How do processors differ?",
        "How many times longer others take, medians, and in brackets what p20 and p80 leave:",
        processors(columns),
    ]


UNREAD = (
    "Memory before step 1 is what the process has touched. rlkern has run its model once by then, "
    "as a check; TRL's weights are still pages of a file that nothing has read, and come to its "
    "memory in the first step. torch and these weights alone are more than the goal. On a machine "
    "that is slow at giving memory rlkern loses more than TRL, and the ratios of steps are "
    "smaller: LOG.md has such a day."
)


def step(path: Path, shown: Callable[[str], list[str]]) -> list[str]:
    """Returns the paragraphs of whole training steps."""
    records = report.records(path)
    if not records:
        return []
    last = list(steps.latest(records).values())
    where = ", ".join(sorted({f"{x['cpu']}, {x['threads']} threads" for x in last}))
    table, sampling = steps.table(records), steps.sampling(records)
    return [
        "## Where does a step's time go?",
        *shown("step"),
        f"A step of SmolLM2-135M beside TRL's GRPOTrainer on {where}, medians in seconds, the last "
        f"line of each case in `benchmarks/results/{path.name}` "
        "(`python -m benchmarks.end_to_end`); TRL's rollout has the grading of its answers in it:",
        *([table, UNREAD] if table else []),
        *(["Sampling alone:", sampling] if sampling else []),
    ]


def peers(path: Path) -> list[str]:
    """Returns the paragraphs of the functions of other projects, on the processor measured last."""
    machines = report.machines(path)
    if not machines:
        return ["`make bench-peers` compares with the functions of other projects on a CPU; no run "
                "of it is on record."]  # fmt: skip
    rows = [x for x in report.records(path) if report.same_machine(x, machines[0])]
    where, by_operation = machines[0], dict[str, list[dict]]()
    for row in rows:
        by_operation.setdefault(row["op"], []).append(row)
    return [
        f"`make bench-peers` on {where['cpu']}, {where['threads']} threads, {where['isa']}, torch "
        f"{where['torch']}, float32, medians in turns, each in memory that others freed, and in "
        f"brackets p20 and p80; a table's head is what each call computes. Rows of "
        f"`benchmarks/results/{path.name}`:",
        *map(beside_peers.table, by_operation.values()),
    ]


def needs(path: Path, shown: Callable[[str], list[str]]) -> list[str]:
    """Returns the paragraphs of memory."""
    lines = report.records(path)
    measured = (
        "`python -m benchmarks.memory` measures the memory of a CPU against tokens; no run of it "
        "is on record."
    )
    if lines:
        where = lines[-1]
        measured = (
            "Measured in float32, hidden size 896 and vocabulary 151 936, on "
            f"{where['cpu']}, {where['threads']} threads, {where['isa']}, torch {where['torch']} "
            f"(`python -m benchmarks.memory`, rows of `benchmarks/results/{path.name}`):"
        )
    return [
        "## What does the loss of a model need?",
        "Computed, not measured, for bfloat16 logits: what the eager loss and the fused linear "
        "loss need on a GPU beside weights and their gradients (`benchmarks/models.py` has the "
        "formulas, and a test compares them with what was measured on a GPU), and how many tokens "
        "the logits and their gradient alone leave room for:",
        models.table(),
        measured,
        *shown("memory"),
    ]


def gpu(path: Path) -> list[str]:
    """Returns the paragraphs of one GPU: the last run that its file holds."""
    last = last_run(path)
    where = last[-1]
    rows = [
        [x["row"].replace("_", " "), " × ".join(map(str, x["shape"])), number(x["ms"]),
         number(x.get("goal_ms")), f"{x['share_of_bound']:.0%}" if "share_of_bound" in x else "–",
         number(x.get("tflops")),
         models.gib(x["peak_extra_bytes"]) if "peak_extra_bytes" in x else "–"]
        for x in last if "ms" in x
    ]  # fmt: skip
    head = ["row", "shape", "ms", "goal, ms", "of the bound", "TFLOP/s", "extra GiB"]
    failed = [
        f"{x['row'].replace('_', ' ')}, {' × '.join(map(str, x['shape']))} ({x['error']})"
        for x in last if "error" in x
    ]  # fmt: skip
    return [
        f"## How fast is it on an {where['device']}?",
        f"{where['device']}, bfloat16 (scans float32), median of `make gpu`, torch "
        f"{where['torch']}, rows of `benchmarks/results/{path.name}`; the bound is the time in "
        "which the bytes that cannot be avoided pass through the memory at its nominal rate:",
        markdown(head, rows),
        *([f"Could not run: {'; '.join(failed)}."] if failed else []),
    ]


def last_run(path: Path) -> list[dict]:
    """Returns the lines of the last run that a GPU's file holds."""
    lines = report.records(path)
    run = (lines[-1]["date"], lines[-1]["commit"])
    return [x for x in lines if (x["date"], x["commit"]) == run]


def gpu_files(folder: Path) -> list[Path]:
    """Returns the files of GPUs: every one that is not known by its name."""
    return [path for path in sorted(folder.glob("*.jsonl")) if path.name not in fields.FORMS]


def not_the_fastest(folder: Path) -> list[str]:
    """Returns the paragraphs of what is faster elsewhere."""
    path = folder / CPU
    lines = list[str]()
    for where in report.machines(path):
        rows = slower.of_processor(report.on_record(report.records(path), where))
        lines += slower.lines(slower.called(where), rows)
    lines += beside_peers.slower(report.records(folder / beside_peers.PEERS))
    lines += steps.slower(report.records(folder / STEPS))
    for each in gpu_files(folder):
        run = last_run(each)
        lines += slower.lines(run[-1]["device"], slower.of_gpu(run))
    return ["## Where is rlkern not the fastest?", "\n".join(lines) or FASTEST]


def numbers(folder: Path = report.RESULTS) -> str:
    """Returns what stands between the marks of the page."""
    known = drawn(folder)

    def shown(name: str) -> list[str]:
        return [known[name].markup(PICTURES.name)] if name in known else []

    paragraphs = cpu(folder / CPU, shown)
    paragraphs += ["## How fast are the functions of others?", *peers(folder / beside_peers.PEERS)]
    paragraphs += step(folder / STEPS, shown)
    paragraphs += not_the_fastest(folder) + needs(folder / MEMORY, shown)
    for path in gpu_files(folder):
        paragraphs += gpu(path)
    return "\n\n".join(paragraphs)
