# SPDX-License-Identifier: Apache-2.0
"""Times the operations on a GPU against its memory, its matrix units and everybody else.

python -m benchmarks.gpu --part 1          rlkern, a copy, a matrix product; needs a GPU
python -m benchmarks.gpu --part 2          eager PyTorch, torch.compile and peers, of the same work
python -m benchmarks.gpu --part 1 --smoke  the same rows at a small size on whatever device is there
python -m benchmarks.gpu --once rlkern_policy_loss_in_place    one call of one row, for a profiler

Each row is written to the results as soon as it is measured: a run that is cut off keeps the rest.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import rlkern
from benchmarks import processes, report
from benchmarks.gpu_rows import GOALS, SMALL, Group, Row, groups, python_calls, python_us
from benchmarks.report import RESULTS, machine

WARM_UP = 3  # the first calls compile kernels and touch memory
# The device spins so long before a call that what Python does for it is hidden.
SPIN_CLOCKS = 3_000_000
# Nominal bandwidth of the memory, by what the device's name contains; vendors' data sheets.
NOMINAL_GBPS = {"H200": 4800, "H100 80GB HBM3": 3350, "A100-SXM4-80GB": 2039, "B200": 8000}
# {row: milliseconds} at the shapes of gpu_rows.GOALS: about 90 % of the bandwidth for the passes.
GOALS_MS = {
    "H100 80GB HBM3": {
        "rlkern_logprob_and_entropy": 0.83,
        "rlkern_policy_loss_in_place": 1.65,
        "rlkern_gspo_in_place": 2.5,
        "rlkern_gae": 0.075,
    },
    "H200": {
        "rlkern_logprob_and_entropy": 0.58,
        "rlkern_policy_loss_in_place": 1.15,
        "rlkern_gspo_in_place": 1.75,
        "rlkern_gae": 0.055,
    },
}
# Of the loss from hidden states, in both shapes.
GOAL_TFLOPS = {"rlkern_linear_policy_loss": 700}


class Device(NamedTuple):
    """Where the rows run."""

    kind: str
    name: str

    @staticmethod
    def found() -> "Device":
        """Returns the GPU if there is one, the processor otherwise."""
        if torch.cuda.is_available():
            return Device("cuda", torch.cuda.get_device_name())
        return Device("cpu", "cpu")

    def nominal_gbps(self) -> float | None:
        """Returns the bandwidth of the data sheet, where it is known."""
        return next((x for word, x in NOMINAL_GBPS.items() if word in self.name), None)

    def goal_ms(self, row: str, shape: Sequence[int]) -> float | None:
        """Returns what the project aims at on this device, if it has said so."""
        if tuple(shape) not in (GOALS.logits, GOALS.scan):
            return None
        return next((x.get(row) for word, x in GOALS_MS.items() if word in self.name), None)


def median_ms(row: Row, group: Group, kind: str, rounds: int) -> float:
    """Returns the median time of one call, on the device's own clock where it has one."""
    samples = []
    for _ in range(rounds + WARM_UP):
        group.setup()
        if kind == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(SPIN_CLOCKS)
            start.record()
            row.call()
            end.record()
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            row.call()
            samples.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(samples[WARM_UP:])


def timed(row: Row, group: Group, kind: str, rounds: int) -> dict[str, object]:
    """Returns milliseconds, rates and memory of a row."""
    before = 0
    if kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    ms = median_ms(row, group, kind, rounds)
    record: dict[str, object] = {"ms": round(ms, 4)}
    if row.bytes:
        record |= {"bytes": row.bytes, "gbps": round(row.bytes / ms / 1e6, 1)}
    if row.flops:
        record["tflops"] = round(row.flops / ms / 1e9, 1)
    if kind == "cuda":
        record["peak_extra_bytes"] = torch.cuda.max_memory_allocated() - before
    return record


def judged(record: dict, device: Device) -> dict:
    """Returns the record with its share of what the memory can do, and its goal if it has one."""
    nominal, goal = device.nominal_gbps(), device.goal_ms(record["row"], record["shape"])
    if nominal is not None and "gbps" in record:
        record["share_of_bound"] = round(record["gbps"] / nominal, 3)
    if goal is not None:
        record |= {"goal_ms": goal, "goal_held": record["ms"] <= goal}
    if device.kind == "cuda" and record["row"] in GOAL_TFLOPS:
        goal = GOAL_TFLOPS[record["row"]]
        record |= {"goal_tflops": goal, "goal_held": record["tflops"] >= goal}
    return record


def line(record: dict) -> str:
    """Returns a record as a line of the table."""
    text = f"{record['row']:<36}"
    if "error" in record:
        return f"{text}cannot run here: {record['error']}"
    if "python_us" in record:
        return f"{text}{record['python_us']:>10.1f} us of the processor"
    text += f"{record['ms']:>10.3f} ms"
    for key, unit in (("gbps", "GB/s"), ("tflops", "TFLOP/s")):
        text += f"{record[key]:>9.0f} {unit}" if key in record else ""
    if "share_of_bound" in record:
        text += f"{record['share_of_bound']:>7.0%} of bound"
    if "goal_held" in record:
        goal = f"{record['goal_ms']} ms" if "goal_ms" in record else f"{record['goal_tflops']}"
        text += f"   goal {goal}: {'held' if record['goal_held'] else 'MISSED'}"
    return text


def measure(group: Group, device: Device, rounds: int) -> Iterator[dict]:
    """Yields one record per row; a row that cannot run has an error in the place of numbers."""
    for name, row in group.rows.items():
        record = {"row": name, "shape": list(group.shape)}
        try:
            yield judged(record | timed(row, group, device.kind, rounds), device)
        except Exception as error:
            yield record | {"error": (str(error) or type(error).__name__).splitlines()[0]}


def measure_all(part: int, device: Device, smoke: bool) -> Iterator[dict]:
    """Yields the records of all groups of a part; the memory of one is free before the next."""
    sizes, rounds = (SMALL, 2) if smoke else (GOALS, 20)
    for make in groups(part, sizes, device.kind, "eager" if smoke else "inductor"):
        yield from measure(make(), device, rounds)
        if device.kind == "cuda":
            torch.cuda.empty_cache()
    if part == 1:
        for name, call in python_calls(device.kind).items():
            python_us(call, WARM_UP)
            us = python_us(call, 2 if smoke else 200)
            yield {"row": name, "shape": [32, 512], "python_us": round(us, 1)}


def once(name: str, device: Device, smoke: bool) -> None:
    """Calls one row of part 1 twice: the first call compiles, the second is for a profiler."""
    for make in groups(1, SMALL if smoke else GOALS, device.kind, "eager"):
        group = make()
        if name in group.rows:
            for _ in range(2):
                group.setup()
                group.rows[name].call()
            return
    raise SystemExit(f"--once must be a row of part 1, got {name!r}")


def main(argv: Sequence[str] | None = None) -> None:
    """Times a part once and appends the records to <results>/<device>.jsonl."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--part", type=int, choices=(1, 2), default=1)
    parser.add_argument("--once", metavar="ROW", help="call one row and measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--smoke", action="store_true", help="small sizes, any device")
    given = parser.parse_args(argv)
    device = Device.found()
    if device.kind == "cpu" and not given.smoke:
        raise SystemExit("benchmarks.gpu needs a GPU (--smoke runs the same rows small on the CPU)")
    if given.once:
        return once(given.once, device, given.smoke)
    server = rlkern.backend_name("policy_loss", device.kind, torch.bfloat16)
    print(f"{device.name}, bfloat16; policy_loss is served by {server}")
    name = "smoke" if given.smoke else device.name.lower().replace(" ", "_")
    where = {**machine(), "device": device.name}
    path, failed = given.results / f"{name}.jsonl", 0
    if not given.smoke and (why := report.forced() or report.refusal(where)):
        if given.results.resolve() == RESULTS.resolve():
            raise SystemExit(f"{why}, or name another folder with --results (OUT of make gpu)")
        print(why.replace("not recorded", "of these rows there can be no record"), flush=True)
    try:
        lines = report.records(path)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    for record in measure_all(given.part, device, given.smoke):
        print(line(record), flush=True)
        lines.append({**where, **record})
        report.write(lines, path)  # at once: such a machine may end at any time
        failed += "error" in record
    if failed:
        raise SystemExit(f"{failed} rows could not run here")


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
