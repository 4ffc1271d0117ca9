# SPDX-License-Identifier: Apache-2.0
"""Times the operations beside the functions of other projects on a CPU.

    make bench-peers [ARGS="--smoke"]

Every function first has to compute what rlkern computes, at a small size; one that does not, or
that cannot run here, is listed with the reason. They take turns in one process; float32, since few
processors have products of bfloat16. Rows take the place of the same machine's in
benchmarks/results/peers_cpu.jsonl, but not those of --smoke, nor of a tree with changes that are
not committed, nor where a project on record cannot be imported.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from benchmarks import cpu_peers, processes, report
from benchmarks.slower import called
from benchmarks.tables import markdown, ms_of, times_of
from rlkern import integrations
from rlkern.testing.timed_inputs import Inputs, LinearInputs

# {operation: what every call of it computes}
WORK = {
    "logprob": "log-probabilities and gradient",
    "logprob_and_entropy": "log-probabilities and entropies",
    "linear_logprob": "log-probabilities from hidden states, and gradients",
    "linear_grpo": "GRPO from hidden states, and gradients",
    "gae": "whitened GAE",
}
# {operation: (its size, a small one)}
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "logprob": ((512, 151936), (16, 130)),
    "logprob_and_entropy": ((512, 151936), (16, 130)),
    "linear_logprob": ((256, 896, 151936), (16, 8, 130)),
    "linear_grpo": ((256, 896, 151936), (16, 8, 130)),
    "gae": ((512, 4096), (4, 16)),
}
ROUNDS = 7
PEERS = "peers_cpu.jsonl"
# Those that no call here can reach, by the reason.
ELSEWHERE = {
    "verl linear_cross_entropy (Triton)": "needs a GPU",
    "flash-attn cross_entropy_loss": "needs a GPU",
    "OpenRLHF log_probs_from_logits": "its package imports flash-attn, which needs a GPU",
}


def inputs_of(operation: str, size: tuple[int, ...]) -> Any:
    """Returns what an operation is called on."""
    if operation == "gae":
        return cpu_peers.Steps.of(*size)
    if operation.startswith("linear"):
        return LinearInputs(*size, "cpu", torch.float32)
    return Inputs(*size, torch.float32)


def calls_of(
    operation: str, size: tuple[int, ...], absent: dict[str, str]
) -> dict[str, Callable[[], Any]]:
    """Returns {name: call} of those that are here, and adds the others to absent."""
    found: dict[str, Callable[[], Any]] = {}
    for project, make in getattr(cpu_peers, operation)(inputs_of(operation, size)).items():
        try:
            found |= make()
        except (ImportError, AttributeError) as error:
            absent[project] = f"cannot be imported here: {str(error).splitlines()[0]}"
    if ours := [each.name for each in integrations.status() if each.calls is not None]:
        raise RuntimeError(f"rlkern must not serve the peers, and is patched into {ours[0]}")
    return found


def disagreements(calls: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """Returns what is wrong with those that compute other numbers than rlkern, or fail.

    >>> one = torch.ones(1)
    >>> disagreements({"rlkern": lambda: (one,), "x": lambda: (one,), "y": lambda: (2 * one,)})
    {'y': 'computes other numbers: Tensor-likes are not close!'}
    """
    ours, wrong = calls["rlkern"](), {}
    for name, call in calls.items():
        try:
            torch.testing.assert_close(tuple(call()), tuple(ours), rtol=1e-4, atol=1e-5)
        except AssertionError as error:
            wrong[name] = f"computes other numbers: {str(error).splitlines()[0]}"
        except Exception as error:  # somebody else's code may fail in any way
            wrong[name] = f"fails here: {type(error).__name__}: {str(error).splitlines()[0]}"
    return wrong


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, report.Timing]:
    """Returns the time of each call, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if i:
                seconds[name].append(time.perf_counter() - started)
    return {name: report.Timing.of(each) for name, each in seconds.items()}


def measured(operation: str, smoke: bool) -> tuple[list[dict[str, Any]], bool]:
    """Returns the rows of an operation, and whether all that ran agreed with rlkern."""
    size, small = SIZES[operation]
    lost: dict[str, str] = {}
    wrong = disagreements(calls_of(operation, small, lost))
    calls = calls_of(operation, small if smoke else size, lost)
    times = in_turns({k: x for k, x in calls.items() if k not in wrong}, 2 if smoke else ROUNDS)
    about = {"op": operation, "size": " × ".join(map(str, small if smoke else size))}
    rows = [{**about, "row": name, "ms": [round(x, 4) for x in t]} for name, t in times.items()]
    rows += [{**about, "row": name, "absent": why} for name, why in {**lost, **wrong}.items()]
    return rows, not wrong


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the table of an operation: who, time, and how many times rlkern's.

    >>> one = {"op": "gae", "size": "4", "row": "rlkern", "ms": [2.0, 2.0, 2.0, 2.0]}
    >>> print(table([one, {**one, "row": "x", "ms": [3.0, 2.5, 3.5, 2.0]}]).splitlines()[-1])
    | x | 3 (2.5–3.5) | 1.50 |
    """
    times = {x["row"]: report.Timing(*x["ms"]) for x in rows if "ms" in x}
    if "rlkern" not in times:
        raise ValueError(f"{PEERS} must have a row of rlkern for {rows[0]['op']}, got none")
    ours = times["rlkern"].median
    lines = [[name, ms_of(t), times_of(t.median / ours)] for name, t in times.items()]
    lines += [[x["row"], x["absent"], ""] for x in rows if "absent" in x]
    return markdown([f"{WORK[rows[0]['op']]}, {rows[0]['size']}", "ms", "÷ rlkern"], lines)


def slower(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each function that is faster than rlkern's.

    >>> one = {"cpu": "C", "threads": 2, "isa": "AVX2", "op": "gae", "size": "4"}
    >>> ours, x = one | {"row": "rlkern", "ms": [3.0] * 4}, one | {"row": "x", "ms": [2.0] * 4}
    >>> slower([ours, x, x | {"cpu": "D", "row": "rlkern"}, one | {"row": "y", "absent": ""}])
    ['- C, AVX2, gae: x is faster at 4 (1.50 times)']
    """
    timed = [x for x in rows if "absent" not in x]
    ours = [x for x in timed if x["row"] == "rlkern"]
    ratios = [
        (x, mine["ms"][0] / x["ms"][0])
        for x in timed for mine in ours if report.same_machine(x, mine) and x["op"] == mine["op"]
    ]  # fmt: skip
    return [
        f"- {called(x)}, {x['op'].replace('_', ' ')}: {x['row']} is faster at {x['size']} "
        f"({times_of(ratio)} times)"
        for x, ratio in ratios if ratio > 1
    ]  # fmt: skip


def main() -> int:
    """Returns 0 after all tables were printed; 1 if a peer disagreed or no rows could be kept."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("operation", nargs="*", help=f"of {', '.join(SIZES)}; all by default")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing compiled")
    given = parser.parse_args()
    if unknown := set(given.operation) - SIZES.keys():
        parser.error(f"operation must be of {', '.join(SIZES)}, got {', '.join(sorted(unknown))}")
    try:
        before = report.records(report.RESULTS / PEERS)
    except ValueError as error:
        parser.error(str(error))
    where, rows, right = report.machine(), list[dict[str, Any]](), True
    if not given.smoke and (why := report.forced() or report.refusal(where)):
        print(f"{why}, or ask for --smoke", file=sys.stderr)
        return 1
    os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "none"  # of which rlkern is one
    if given.smoke:
        cpu_peers.SMOKE = True
    operations = given.operation or list(SIZES)
    if not given.smoke and (why := missing(absent(operations, where), before)):
        print(why, file=sys.stderr)
        return 1
    for operation in operations:
        found, agreed = measured(operation, given.smoke)
        right &= agreed
        rows += found
        print(f"{table(found)}\n", flush=True)
    print("\n".join(f"{name}: {why}" for name, why in ELSEWHERE.items()))
    if given.smoke:
        return int(not right)
    rows = [{**where, **row} for row in rows]
    measured_ = {row["op"] for row in rows}
    kept = [x for x in before
            if not (report.same_machine(x, rows[0]) and x["op"] in measured_)]  # fmt: skip
    report.write([*kept, *rows], report.RESULTS / PEERS)
    return int(not right)


def absent(operations: Iterable[str], where: Mapping[str, object]) -> list[dict[str, Any]]:
    """Returns a row for each project that an operation cannot be compared with here."""
    rows = list[dict[str, Any]]()
    for operation in operations:
        found = dict[str, str]()
        calls_of(operation, SIZES[operation][1], found)
        rows += [{**where, "op": operation, "row": x, "absent": why} for x, why in found.items()]
    return rows


def missing(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> str | None:
    """Returns why rows may not take the place of those before: a project that was timed on this
    machine cannot be imported now, which says something of the environment alone.

    >>> here = {"cpu": "C", "threads": 2, "isa": "AVX2", "op": "gae"}
    >>> now = [here | {"row": "verl", "absent": "cannot be imported here: No module named 'verl'"}]
    >>> missing(now, [here | {"row": "verl f", "ms": [1.0] * 4}])
    'not recorded: verl cannot be imported here and is on record: run make bench-peers'
    >>> missing(now, [here | {"row": "verl f", "ms": [1.0] * 4, "op": "logprob"}])
    """
    lost = dict.fromkeys(
        now["row"]
        for now in rows if "cannot be imported" in now.get("absent", "")
        for x in before
        if "ms" in x and report.same_machine(x, now) and x["op"] == now["op"]
        and x["row"].split(" ")[0] == now["row"]
    )  # fmt: skip
    if not lost:
        return None
    names = ", ".join(lost)
    return f"not recorded: {names} cannot be imported here and is on record: run make bench-peers"


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
