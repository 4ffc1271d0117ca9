# SPDX-License-Identifier: Apache-2.0
"""Whole steps of rlkern's trainer beside TRL's GRPOTrainer, and its sampling beside `generate`.

    python -m benchmarks.end_to_end --peer .venv-integrations/bin/python
        [--cases wide,short,long,generate,ends] [--dtype mixed] [--steps 3] [--rounds 1]
        [--threads 2] [--dry]

SmolLM2-135M, and the settings of configs/smollm2_arithmetic.yaml with the same prompts, lengths,
reward and learning rate on both sides; answers end with the model's end of text alone. The sides
take turns, each in processes of their own, in which the first step is not counted. Medians are
printed: seconds of a step by the wall and of the CPU, which other work on the machine disturbs
less, tokens sampled a second, memory (VmRSS before the first step, VmHWM) and reward. Lines go to
benchmarks/results/end_to_end.jsonl, with --dry nowhere. `--peer` is left out for `generate` and
`ends`, which compare rlkern's sampler with `model.generate` in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import processes, report
from benchmarks.end_to_end_trl import Clock, memory
from rlkern.doctor import processor

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/smollm2_arithmetic.yaml"
RECORDS = ROOT / "benchmarks/results/end_to_end.jsonl"
# Prompts, answers to each, tokens of an answer.
STEPS = {"wide": (16, 16, 4), "short": (4, 16, 4), "long": (4, 4, 128)}
# Sampling alone; whether a token in twenty, beside the end of text, ends an answer.
SAMPLING = {"generate": False, "ends": True}
_ENDS = 20
# {what a clock counts: the tokens in one of it}
SPEEDS = {"seconds": "tokens_a_second", "cpu": "tokens_a_cpu_second"}


def settings_of(own: dict[str, Any], without: tuple[str, ...] = ()) -> Any:
    """Returns the settings of the shipped run with changes, by dotted keys."""
    from rlkern.runs.settings.yaml_file import read
    from rlkern.trainer.settings import Layer
    from rlkern.trainer.settings.resolve import resolved

    shipped = {k: x for k, x in _dotted(read(CONFIG, "settings")).items() if k not in without}
    return resolved(Layer(str(CONFIG), {**shipped, **own})).settings


def _dotted(tree: dict[str, Any], head: str = "") -> dict[str, Any]:
    found = dict[str, Any]()
    for key, value in tree.items():
        inner = _dotted(value, f"{head}{key}.") if isinstance(value, dict) else {head + key: value}
        found.update(inner)
    return found


def job_of(case: str, given: argparse.Namespace) -> dict[str, Any]:
    """Returns what both sides are asked for."""
    from rlkern.trainer.models import smollm2
    from rlkern.trainer.tasks.registry import make_task

    prompts, group_size, new_tokens = STEPS.get(case, (4, 4, 128))
    task = make_task(settings_of({}))
    items, _ = task.next_items(0, prompts * (given.steps + 1))
    return {
        "case": case, "prompts": prompts, "group_size": group_size, "new_tokens": new_tokens,
        "steps": given.steps, "dtype": given.dtype, "threads": given.threads,
        "model": str(smollm2.converted()),
        "rows": [{"prompt": item.prompt, "answer": item.right} for item in items],
        "held_out": [{"prompt": i.prompt, "answer": i.right} for i in task.held_out[:4]],
    }  # fmt: skip


def _write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Returns what the steps of a job cost rlkern, as end_to_end_trl.steps does for TRL."""
    from rlkern.trainer import build, preflight
    from rlkern.trainer.processes.world import World

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = _learning(job, folder)
        world = World.start(settings.device)
        preflight.check(settings, world)
        parts = build.load(settings, world, None)
        run = build.begin(parts, folder, None, say=lambda _: None, after_step=lambda *_: None)
        before, found = memory("VmRSS"), list[dict[str, float]]()
        for _ in range(job["steps"] + 1):
            sampled, clock = parts.progress.generated_tokens, Clock()
            values, _answers = run.learner.step(run.updater, lambda _: None)
            own = {key.removeprefix("time/"): x for key, x in values.items() if "time/" in key}
            own["grading"] = own.pop("reward")  # what TRL calls reward is its mean
            own["tokens"] = parts.progress.generated_tokens - sampled
            own["silent"] = values["sampling/groups_silent"]
            found.append({**clock.lap(), **own, "reward": values["reward"]})
    return {"steps": found[1:], "before_mib": before, "peak_mib": memory("VmHWM")}


def _learning(job: dict[str, Any], folder: Path) -> Any:
    """Returns the shipped settings over a job's prompts."""
    own = {
        "data.train": _write(folder / "rows.jsonl", job["rows"]),
        "data.eval": _write(folder / "held_out.jsonl", job["held_out"]),
        "data.chat": False, "reward.functions": "benchmarks.end_to_end_trl:right",
        "batch.prompts": job["prompts"], "rollout.group_size": job["group_size"],
        "rollout.max_new_tokens": job["new_tokens"], "dtype": job["dtype"],
        "threads": job["threads"], "eval.items": len(job["held_out"]), "device": "cpu",
        "optimizer.warmup": 0, "optimizer.decay": None, "output.dir": str(folder),
        "output.log": [],
    }  # fmt: skip
    return settings_of(own, without=("task", "data.shots", "data.template"))


def sampling(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the tokens a second of rlkern's sampler and of `model.generate`, in turns."""
    import torch

    from rlkern.trainer.models.load import load_policy
    from rlkern.trainer.rollout import sampler
    from rlkern.trainer.rollout.text import encode

    torch.set_num_threads(job["threads"])
    device = torch.device("cpu")
    policy = load_policy(Path(job["model"]), device=device, dtype=job["dtype"])
    group, width = job["group_size"], job["new_tokens"]
    asked = [row["prompt"] for row in job["rows"][: job["prompts"]]]
    prompts = encode(policy, asked, max_new_tokens=width)
    ends = range(0, policy.model.config.vocab_size, _ENDS) if SAMPLING[job["case"]] else ()
    stop = torch.tensor(sorted({policy.tokenizer.eos_token_id, *ends}))
    rule = sampler.Sampling(width, stop)
    numbers = sampler.random_numbers(torch.Generator().manual_seed(0), len(asked) * group, rule)

    def sample() -> int:
        return int(sampler.sample(
            policy, prompts, rule, group_size=group, uniform=numbers
        ).mask.sum())  # fmt: skip

    def generate() -> int:
        torch.manual_seed(0)
        ids, mask = (x.repeat_interleave(group, 0) for x in prompts)
        with torch.no_grad(), policy.precision(sampling=True):
            found = policy.model.generate(
                input_ids=ids, attention_mask=mask.long(), do_sample=True, top_k=0, top_p=1.0,
                temperature=1.0, max_new_tokens=width, eos_token_id=stop.tolist(), pad_token_id=0,
            )[:, ids.shape[1]:]  # fmt: skip
        over = torch.isin(found, stop).cumsum(1) - torch.isin(found, stop).long()
        return int((over == 0).sum())

    speeds: dict[str, list[dict[str, float]]] = {"rlkern": [], "generate": []}
    for _ in range(job["steps"] + 1):
        for who, run in zip(speeds, (sample, generate), strict=True):
            clock = Clock()
            tokens = run()
            took = clock.lap()
            speeds[who].append({SPEEDS[key]: tokens / x for key, x in took.items()})
    return {who: found[1:] for who, found in speeds.items()}


WORK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    **dict.fromkeys(STEPS, ours),
    **dict.fromkeys(SAMPLING, sampling),
}


def child(words: list[str], job: dict[str, Any]) -> dict[str, Any]:
    """Returns what a process of its own measured of a job."""
    threads = str(job["threads"])
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"OMP_NUM_THREADS": threads, "PYTHONPATH": path}
    return processes.said(words, json.dumps(job), variables)


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the medians of all steps of some runs, and of their memory."""
    every = [step for run in runs for step in run["steps"]]
    found = {key: statistics.median(step[key] for step in every) for key in every[0]}
    found["tokens_a_second"] = statistics.median(x["tokens"] / x["rollout"] for x in every)
    for key in ("before_mib", "peak_mib"):
        found[key] = statistics.median(run[key] for run in runs)
    return {key: round(x, 4) for key, x in found.items()}


def compared(case: str, given: argparse.Namespace) -> dict[str, Any]:
    """Returns the record of a case, after both sides took their turns."""
    job = job_of(case, given)
    mine = [sys.executable, "-m", "benchmarks.end_to_end", "--one"]
    if case in SAMPLING:
        runs = [child(mine, job) for _ in range(given.rounds)]
        sides = {
            who: {
                key: round(statistics.median(x[key] for run in runs for x in run[who]), 2)
                for key in SPEEDS.values()
            }
            for who in ("rlkern", "generate")
        }
        wall, cpu = (sides["rlkern"][key] / sides["generate"][key] for key in SPEEDS.values())
        return {**sides, "ratio": wall, "cpu_ratio": cpu}
    theirs = [given.peer, "-m", "benchmarks.end_to_end_trl"]
    found: dict[str, list[dict[str, Any]]] = {"rlkern": [], "trl": []}
    for _ in range(given.rounds):
        for who, words in zip(found, (mine, theirs), strict=True):
            found[who].append(child(words, job))
    sides = {who: medians(runs) for who, runs in found.items()}
    ratios = {key: sides["trl"][key] / sides["rlkern"][key] for key in ("seconds", "cpu")}
    return {**sides, "ratio": ratios["seconds"], "cpu_ratio": ratios["cpu"]}


def record(case: str, given: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Returns a line of the records."""
    commit, cpu = report.machine()["commit"], processor()
    about = {"case": case, "dtype": given.dtype, "threads": given.threads, "cpu": cpu}
    return {**about, "date": time.strftime("%Y-%m-%d"), "commit": commit, **found}


def _no_peer(python: str | None) -> str | None:
    """Returns why a program cannot run TRL, known before anything is measured."""
    if not python:
        return "none"
    try:
        words = [python, "-c", "import trl"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    except OSError as error:
        return f"{python} ({error.strerror})"
    why = (done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1]
    return f"{python} ({why})" if done.returncode else None


def main() -> int:
    """Returns 0 after all cases ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="Python of an environment that has TRL")
    parser.add_argument("--cases", default=",".join(WORK))
    parser.add_argument("--dtype", choices=("mixed", "float32"), default="mixed")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        job = json.loads(sys.stdin.read())
        print("\n" + json.dumps(WORK[job["case"]](job)))
        return 0
    cases = given.cases.split(",")
    if unknown := set(cases) - WORK.keys():
        parser.error(f"--cases must be of {', '.join(WORK)}, got {', '.join(unknown)}")
    for name in ("steps", "rounds", "threads"):
        if (number := getattr(given, name)) < 1:
            parser.error(f"--{name} must be at least 1, got {number}")
    if set(cases) & STEPS.keys() and (why := _no_peer(given.peer)):
        parser.error(f"--peer must be the Python of an environment that has TRL, got {why}")
    if not given.dry and (why := report.forced() or report.refusal(report.machine())):
        print(f"{why}, or ask for --dry", file=sys.stderr)
        return 1
    try:
        report.records(RECORDS)  # a line that was cut off is said before hours of measuring
    except ValueError as error:
        parser.error(str(error))
    for case in cases:
        try:
            line = record(case, given, compared(case, given))
        except RuntimeError as error:
            print(f"{case}: {error}", file=sys.stderr)
            return 1
        print(json.dumps(line, indent=1), flush=True)
        if not given.dry and (why := report.refusal(line)):
            print(why, file=sys.stderr)
            return 1
        if not given.dry:
            report.write([*report.records(RECORDS), line], RECORDS)
    return 0


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
