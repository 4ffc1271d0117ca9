# SPDX-License-Identifier: Apache-2.0
"""Turns pytest-benchmark's file into the table of ratios and the committed rows."""

import json
import platform
import subprocess
from datetime import date
from pathlib import Path

import torch

import rlkern

RESULTS = Path(__file__).parent / "results"
# (row, divided by, bound that the project sets itself; None: only printed)
BOUNDS = {
    ("policy_loss 512x151936 float32", "rlkern_in_place", "memcpy_of_the_logits"): ("<=", 1.5),
    ("policy_loss 512x151936 bfloat16", "rlkern_in_place", "memcpy_of_the_logits"): ("<=", 2.8),
    ("policy_loss 512x151936 float32", "eager", "rlkern_in_place"): (">=", 6.0),
    ("policy_loss 512x151936 bfloat16", "eager", "rlkern_in_place"): (">=", 14.0),
    ("policy_loss 512x151936 float32", "torch_compile", "rlkern_in_place"): (">=", 8.0),
    ("policy_loss 512x151936 bfloat16", "torch_compile", "rlkern_in_place"): (">=", 5.0),
    ("policy_loss 1920x21 float32", "eager", "rlkern_in_place"): (">=", 1.0),
    ("policy_loss 1920x21 bfloat16", "eager", "rlkern_in_place"): (">=", 1.0),
}
Times = dict[str, dict[str, float]]


def read(path: Path) -> Times:
    """Returns {group: {row: fastest milliseconds}}: the least disturbed round."""
    times: Times = {}
    for entry in json.loads(path.read_text())["benchmarks"]:
        name = entry["name"].removeprefix("test_").split("[")[0]
        times.setdefault(entry["group"], {})[name] = entry["stats"]["min"] * 1e3
    return times


def table(times: Times) -> str:
    """Returns each group's rows, in milliseconds and as multiples of the group's first row."""
    lines = []
    for group, rows in times.items():
        first, unit = next(iter(rows.items()))
        lines.append(f"\n{group}{'':<8}(1.00 = {first})")
        lines += [f"  {name:<28}{ms:>11.3f} ms{ms / unit:>9.2f} x" for name, ms in rows.items()]
    return "\n".join(lines)


def verdicts(times: Times) -> list[str]:
    """Returns one line for each bound: the ratio measured in this run, and whether it holds."""
    lines = []
    for (group, above, below), (sign, bound) in BOUNDS.items():
        rows = times.get(group, {})
        if above in rows and below in rows:
            ratio = rows[above] / rows[below]
            held = ratio <= bound if sign == "<=" else ratio >= bound
            label = "held" if held else "MISSED"
            lines.append(f"{label:<7}{group}: {above} / {below} = {ratio:.2f} ({sign} {bound})")
    return lines


def machine() -> dict[str, object]:
    """Returns what a reader needs to know of where the numbers come from."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor())  # fmt: skip
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    return {
        "date": date.today().isoformat(),
        "commit": commit,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "rlkern": rlkern.__version__,
    }


def append(times: Times, path: Path) -> None:
    """Adds one JSON line per group to a results file."""
    path.parent.mkdir(exist_ok=True)
    where = machine()
    with path.open("a") as file:
        for group, rows in times.items():
            rounded = {name: round(ms, 4) for name, ms in rows.items()}
            file.write(json.dumps({**where, "group": group, "min_ms": rounded}) + "\n")
