# SPDX-License-Identifier: Apache-2.0
"""The side of benchmarks/end_to_end.py that runs in TRL's environment: steps of its GRPOTrainer.

Nothing of rlkern is used; the reward function and the clock here are those of both sides.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any


def right(completions: list[str], answer: list[str], **_) -> list[float]:
    """Returns 1 for completions whose first line is the answer, else 0."""
    told = [text.strip().split("\n")[0].strip() for text in completions]
    return [float(text == expected) for text, expected in zip(told, answer, strict=True)]


def memory(key: str) -> float:
    """Returns MiB of this process by a key of /proc/self/status: VmRSS now, VmHWM at most."""
    with open("/proc/self/status") as file:
        (line,) = [each for each in file if each.startswith(f"{key}:")]
    return int(line.split()[1]) / 1024


class Clock:
    """Wall and CPU seconds between its calls."""

    def __init__(self) -> None:
        self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def lap(self) -> dict[str, float]:
        """Returns the seconds since the last call."""
        before, self._last = self._last, self._now()
        return dict(zip(("seconds", "cpu"), (b - a for a, b in zip(before, self._last))))


def steps(job: dict[str, Any]) -> dict[str, Any]:
    """Returns what the steps of a job cost: one dictionary each, and the memory of all."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(job["threads"])
    rows, found = job["prompts"] * job["group_size"], list[dict[str, float]]()
    rollout, clock = list[float](), Clock()
    before = list[float]()

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            started = time.perf_counter()
            try:
                return super()._generate_and_score_completions(inputs)
            finally:
                rollout.append(time.perf_counter() - started)

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            before[:] = before or [memory("VmRSS")]
            clock.lap()

        def on_step_end(self, *_, **__):
            found.append({**clock.lap(), "rollout": rollout[-1]})

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "reward" in logs:
                found[-1]["reward"] = logs["reward"]
                found[-1]["tokens"] = logs["completions/mean_length"] * rows

    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, max_steps=job["steps"] + 1, per_device_train_batch_size=rows,
            num_generations=job["group_size"], max_completion_length=job["new_tokens"],
            learning_rate=1e-5, adam_beta2=0.95, max_grad_norm=1.0, lr_scheduler_type="constant",
            beta=0.0, loss_type="grpo", temperature=1.0, shuffle_dataset=False, logging_steps=1,
            save_strategy="no", report_to=[], use_cpu=True, bf16=job["dtype"] == "mixed",
            gradient_checkpointing=False, disable_tqdm=True, seed=0,
            model_init_kwargs={"dtype": "float32"},
        )  # fmt: skip
        trainer = Timed(
            model=job["model"], reward_funcs=right, args=args, callbacks=[Watch()],
            train_dataset=Dataset.from_list(job["rows"]),
        )  # fmt: skip
        trainer.train()
    return {"steps": found[1:], "before_mib": before[0], "peak_mib": memory("VmHWM")}


if __name__ == "__main__":
    found_by_trl = steps(json.loads(sys.stdin.read()))
    print("\n" + json.dumps(found_by_trl))
