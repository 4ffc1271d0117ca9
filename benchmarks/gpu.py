# SPDX-License-Identifier: Apache-2.0
"""Times the operations on a GPU against eager PyTorch, torch.compile, peers and their bytes.

python -m benchmarks.gpu            8192 × 151936 in bfloat16, needs a GPU
python -m benchmarks.gpu --smoke    the same rows at a small size on whatever device is there
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

import rlkern
from benchmarks import baselines, peers
from benchmarks.inputs import GSPO, SOFTCAP, Inputs
from benchmarks.report import RESULTS, machine

SHAPE = (8192, 151936)
WARM_UP = 3  # the first calls compile kernels and touch memory
# Nominal bandwidth of the memory, by what the device's name contains; vendors' data sheets.
NOMINAL_GBPS = {"H200": 4800, "H100 80GB HBM3": 3350, "A100-SXM4-80GB": 2039, "B200": 8000}
# {row: milliseconds} on an H200 at SHAPE: 90 % of the nominal bandwidth, for 1, 2 and 3 passes.
GOALS_H200_MS = {
    "rlkern_logprob_and_entropy": 0.58,
    "rlkern_policy_loss_in_place": 1.15,
    "rlkern_gspo_in_place": 1.75,
}


class Row(NamedTuple):
    """A call, and the passes over the logits that it cannot do without."""

    call: Callable[[], object]
    passes: float


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
        if "H200" not in self.name or tuple(shape) != SHAPE:
            return None
        return GOALS_H200_MS.get(row)


def median_ms(
    row: Callable[[], object], setup: Callable[[], object], kind: str, rounds: int
) -> float:
    """Returns the median time of one call, on the device's own clock where it has one.

    The copy that setup leaves on the device's queue hides the time of launching the call.
    """
    samples = []
    for _ in range(rounds + WARM_UP):
        setup()
        if kind == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            row()
            end.record()
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            row()
            samples.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(samples[WARM_UP:])


def logprob_forward_backward(inputs: Inputs) -> None:
    """Runs token_logprob as an autograd operation, its gradient over the logits."""
    out = rlkern.token_logprob(inputs.non_leaf(), inputs.token, inplace=True)
    out.logprob.backward(inputs.advantage)


def our_rows(inputs: Inputs) -> dict[str, Row]:
    """Returns the yardstick and rlkern's rows."""
    target = torch.empty_like(inputs.source)
    logits, token = inputs.logits, inputs.token
    fused = partial(inputs.fused, True)
    return {
        "copy_of_the_logits": Row(lambda: target.copy_(inputs.source), 2),
        "rlkern_logprob_and_entropy": Row(lambda: rlkern.token_logprob(logits, token), 1),
        "rlkern_logprob_forward_backward": Row(partial(logprob_forward_backward, inputs), 3),
        "rlkern_policy_loss_alone": Row(lambda: inputs.loss(logits), 1),
        "rlkern_policy_loss_in_place": Row(fused, 2),
        "rlkern_policy_loss_fresh_buffer": Row(partial(inputs.fused, False), 2),
        "rlkern_gspo_in_place": Row(partial(fused, **GSPO), 3),
        "rlkern_kept_set_in_place": Row(partial(fused, keep=inputs.keep), 1),
        "rlkern_softcap_in_place": Row(partial(fused, softcap=SOFTCAP), 2),
    }


def eager_rows(inputs: Inputs, compiler: str) -> dict[str, Row]:
    """Returns eager PyTorch's rows and torch.compile's."""
    grpo, gspo = baselines.eager_grpo_loss, baselines.eager_gspo_loss
    score = baselines.eager_logprob_and_entropy
    compiled = partial(torch.compile, backend=compiler)
    found = {}
    for name, wrap in {"eager": lambda f: f, "compile": compiled}.items():
        found |= {
            f"{name}_logprob_and_entropy": Row(
                partial(wrap(score), inputs.source, inputs.token), 1),
            f"{name}_policy_loss": Row(partial(inputs.other, wrap(grpo)), 2),
            f"{name}_gspo": Row(partial(inputs.other, wrap(gspo)), 3),
        }  # fmt: skip
    kept, capped = baselines.eager_kept_set_loss, baselines.eager_softcap_loss
    found["eager_kept_set"] = Row(partial(inputs.other, kept, inputs.keep), 1)
    found["eager_softcap"] = Row(partial(inputs.other, capped, SOFTCAP), 2)
    return found


def gae_rows(kind: str, b: int, t: int) -> dict[str, Callable[[], object]]:
    """Returns GAE by the scan, and by the reference's doubling steps."""
    reward, value = (torch.randn(b, t, device=kind) for _ in range(2))
    mask = torch.ones_like(reward, dtype=torch.bool)

    def reference():
        with rlkern.use_backend("eager"):
            rlkern.gae(reward, value, mask)

    return {"rlkern_gae": lambda: rlkern.gae(reward, value, mask), "eager_gae": reference}


def timed(row: Row, inputs: Inputs, kind: str, rounds: int) -> dict[str, object]:
    """Returns milliseconds, bandwidth and memory of a row."""
    before = 0
    if kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    ms = median_ms(row.call, inputs.reset, kind, rounds)
    gbps = row.passes * inputs.source.numel() * inputs.source.element_size() / ms / 1e6
    peak = torch.cuda.max_memory_allocated() - before if kind == "cuda" else None
    return {
        "ms": round(ms, 4), "gbps": round(gbps, 1), "passes": row.passes, "peak_extra_bytes": peak,
    }  # fmt: skip


def judged(record: dict, device: Device, shape: Sequence[int], copy_gbps: float) -> dict:
    """Returns the record with its share of what the memory can do, and its goal if it has one."""
    nominal, goal = device.nominal_gbps(), device.goal_ms(str(record["row"]), shape)
    record["share_of_copy"] = round(record["gbps"] / copy_gbps, 3)
    if nominal is not None:
        record["share_of_bound"] = round(record["gbps"] / nominal, 3)
    if goal is not None:
        record |= {"goal_ms": goal, "goal_held": record["ms"] <= goal}
    return record


def line(record: dict) -> str:
    """Returns a record as a line of the table."""
    if "gbps" not in record:
        return f"{record['row']:<36}{record['ms']:>10.3f} ms"
    text = (
        f"{record['row']:<36}{record['ms']:>10.3f} ms{record['gbps']:>9.0f} GB/s"
        f"{record['share_of_copy']:>7.0%} of copy"
    )
    if "share_of_bound" in record:
        text += f"{record['share_of_bound']:>7.0%} of bound"
    if "goal_ms" in record:
        text += f"   goal {record['goal_ms']} ms: {'held' if record['goal_held'] else 'MISSED'}"
    return text


def measure(inputs: Inputs, device: Device, rounds: int, compiler: str) -> list[dict]:
    """Prints and returns one record per row; a peer that cannot run is said to."""
    shape = (inputs.token.numel(), inputs.source.shape[-1])
    found, absent = peers.rows(inputs)
    theirs = {name: Row(*row) for name, row in found.items()}
    records: list[dict] = []
    for name, row in (our_rows(inputs) | eager_rows(inputs, compiler) | theirs).items():
        try:
            record = {"row": name, **timed(row, inputs, device.kind, rounds)}
        except Exception as error:
            if name not in theirs:
                raise
            absent[name] = f"cannot run here: {error}".splitlines()[0]
            continue
        copy_gbps = records[0]["gbps"] if records else record["gbps"]
        records.append(judged(record, device, shape, copy_gbps))
        print(line(record), flush=True)
    for name, why in absent.items():
        print(f"{name:<36}{why}")
    return records


def main(argv: Sequence[str] | None = None) -> None:
    """Times everything once and appends the records to benchmarks/results/<device>.jsonl."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--smoke", action="store_true", help="small size, any device, nothing recorded"
    )
    smoke = parser.parse_args(argv).smoke
    device = Device.found()
    if device.kind == "cpu" and not smoke:
        raise SystemExit("benchmarks.gpu needs a GPU (--smoke runs the same rows small on the CPU)")
    (n, v), (b, t) = ((64, 1000), (8, 64)) if smoke else (SHAPE, (8192, 2048))
    rounds = 2 if smoke else 20
    server = rlkern.backend_name("policy_loss", device.kind, torch.bfloat16)
    print(f"{device.name}: {n} x {v} bfloat16; policy_loss is served by {server}")
    inputs = Inputs(n, v, torch.bfloat16, device.kind)
    records = measure(inputs, device, rounds, "eager" if smoke else "inductor")
    for row, run in gae_rows(device.kind, b, t).items():
        ms = median_ms(run, inputs.reset, device.kind, rounds)
        records.append({"row": f"{row} {b}x{t}", "ms": round(ms, 4)})
        print(line(records[-1]))
    if not smoke:
        path = RESULTS / f"{device.name.lower().replace(' ', '_')}.jsonl"
        path.parent.mkdir(exist_ok=True)
        where = {**machine(), "device": device.name, "shape": [n, v]}
        with path.open("a") as file:
            file.writelines(json.dumps({**where, **record}) + "\n" for record in records)


if __name__ == "__main__":
    main()
