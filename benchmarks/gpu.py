# SPDX-License-Identifier: Apache-2.0
"""Times the operations on a GPU against eager PyTorch, torch.compile and the bytes they must move.

python -m benchmarks.gpu            8192 × 151936 in bfloat16, needs a GPU
python -m benchmarks.gpu --smoke    the same rows at a small size on whatever device is there
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial

import torch

import rlkern
from benchmarks.baselines import eager_grpo_loss, eager_logprob_and_entropy
from benchmarks.inputs import Inputs
from benchmarks.report import RESULTS, machine


def on_device(inputs: Inputs, device: str) -> Inputs:
    """Returns the inputs with every tensor moved."""
    for name, x in vars(inputs).items():
        if isinstance(x, torch.Tensor):
            setattr(inputs, name, x.to(device))
    return inputs


def median_ms(run: Callable[[], object], device: str, rounds: int) -> float:
    """Returns the median time of one call, on the device's own clock where it has one."""
    samples = []
    for i in range(rounds + 3):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            elapsed = start.elapsed_time(end)
        else:
            begin = time.perf_counter()
            run()
            elapsed = (time.perf_counter() - begin) * 1e3
        if i >= 3:  # the first calls compile kernels and touch memory
            samples.append(elapsed)
    return statistics.median(samples)


def logprob_forward_backward(inputs: Inputs) -> None:
    """Runs token_logprob as an autograd operation, gradient in a fresh buffer."""
    out = rlkern.token_logprob(inputs.non_leaf(), inputs.token)
    out.logprob.backward(inputs.advantage)


def rows(inputs: Inputs) -> dict[str, tuple[Callable[[], object], float]]:
    """Returns {row: (call, passes over the logits that it cannot do without)}."""
    target = torch.empty_like(inputs.source)
    compiled = torch.compile(eager_grpo_loss)
    compiled_logprob = torch.compile(eager_logprob_and_entropy)
    return {
        "copy_of_the_logits": (lambda: target.copy_(inputs.source), 2),
        "rlkern_logprob_and_entropy": (
            lambda: rlkern.token_logprob(inputs.logits, inputs.token), 1),
        "rlkern_logprob_forward_backward": (lambda: logprob_forward_backward(inputs), 3),
        "rlkern_policy_loss_in_place": (lambda: inputs.fused(inplace=True), 2),
        "rlkern_policy_loss_fresh_buffer": (lambda: inputs.fused(inplace=False), 2),
        "eager_logprob_and_entropy": (
            lambda: eager_logprob_and_entropy(inputs.source, inputs.token), 1),
        "eager_policy_loss": (partial(inputs.other, eager_grpo_loss), 2),
        "compile_logprob_and_entropy": (
            lambda: compiled_logprob(inputs.source, inputs.token), 1),
        "compile_policy_loss": (partial(inputs.other, compiled), 2),
    }  # fmt: skip


def gae_rows(device: str, b: int, t: int) -> dict[str, Callable[[], object]]:
    """Returns GAE by the scan, and by the reference's doubling steps."""
    reward, value = (torch.randn(b, t, device=device) for _ in range(2))
    mask = torch.ones_like(reward, dtype=torch.bool)

    def reference():
        with rlkern.use_backend("eager"):
            rlkern.gae(reward, value, mask)

    return {"rlkern_gae": lambda: rlkern.gae(reward, value, mask), "eager_gae": reference}


def measure(inputs: Inputs, device: str, rounds: int) -> list[dict[str, object]]:
    """Prints and returns one record per row: time, share of the copy's bandwidth, memory."""
    logits_bytes = inputs.source.numel() * inputs.source.element_size()
    records: list[dict[str, object]] = []
    bandwidth = None
    for name, (run, passes) in rows(inputs).items():
        inputs.reset()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        ms = median_ms(run, device, rounds)
        gbps = passes * logits_bytes / ms / 1e6
        bandwidth = bandwidth or gbps
        peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else None
        record = {"row": name, "ms": round(ms, 4), "gbps": round(gbps, 1), "passes": passes}
        record |= {"share_of_copy": round(gbps / bandwidth, 3), "peak_extra_bytes": peak}
        records.append(record)
        print(
            f"{name:<34}{ms:>10.3f} ms{gbps:>9.0f} GB/s{gbps / bandwidth:>7.0%} of copy", flush=True
        )
    return records


def main() -> None:
    """Times everything once and appends the records to benchmarks/results/<device>.jsonl."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--smoke", action="store_true", help="small size, any device, nothing recorded"
    )
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.smoke:
        raise SystemExit("benchmarks.gpu needs a GPU (--smoke runs the same rows small on the CPU)")
    n, v, b, t = (64, 1000, 8, 64) if arguments.smoke else (8192, 151936, 8192, 2048)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(f"{name}: {n} x {v} bfloat16; policy_loss is served by",
          rlkern.backend_name("policy_loss", device, torch.bfloat16))  # fmt: skip
    inputs = on_device(Inputs(n, v, torch.bfloat16), device)
    records = measure(inputs, device, rounds=20)
    for row, run in gae_rows(device, b, t).items():
        ms = median_ms(run, device, 20)
        records.append({"row": f"{row} {b}x{t}", "ms": round(ms, 4)})
        print(f"{row + f' {b}x{t}':<34}{ms:>10.3f} ms")
    if not arguments.smoke:
        path = RESULTS / f"{name.lower().replace(' ', '_')}.jsonl"
        path.parent.mkdir(exist_ok=True)
        where = {**machine(), "device": name, "date": date.today().isoformat(), "shape": [n, v]}
        with path.open("a") as file:
            file.writelines(json.dumps({**where, **record}) + "\n" for record in records)


if __name__ == "__main__":
    main()
