# SPDX-License-Identifier: Apache-2.0
"""A small model learns from a larger one, on its own answers and without a reward.

The student answers prompts of a file, and the advantage of each token is the teacher's
log-probability of it minus the student's own (algorithm on_policy_distillation).

python examples/distillation.py                                 makes a teacher that can add
python examples/distillation.py STUDENT TEACHER PROMPTS.jsonl   two models with one tokenizer
"""

import json
import sys
from pathlib import Path

from rlkern.trainer import train
from rlkern.trainer.settings import of


def write_sums(path, count=30):
    """Writes a file of prompts and right answers."""
    with path.open("w") as file:
        for a in range(count):
            for b in range(count):
                row = {"prompt": f"{a:02d}+{b:02d}=", "answer": f"{a + b:03d}"}
                print(json.dumps(row), file=file)
    return str(path)


def make_teacher(data, folder, steps):
    """Trains a model on the right answers of the file; returns the folder of its run."""
    keys = {"algorithm": "sft", "model": "tiny", "data.train": data, "steps": steps}
    keys |= {"batch.prompts": 64, "optimizer.lr": 2e-3, "name": "teacher"}
    train(of(**keys, **{"output.dir": str(folder)}))
    return str(folder / "teacher")  # a run's folder means its best checkpoint


def main(student="tiny", teacher=None, data=None, folder="runs", steps=150, taught=300, **keys):
    """Returns the summary of the student's run; the right answers only measure it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = data or write_sums(folder / "sums.jsonl")
    settings = {
        "algorithm": "on_policy_distillation",
        "model": student,
        "teacher": teacher or make_teacher(data, folder, taught),
        "data.train": data,
        "sft": None,
        "reward.functions": "exact",
        "rollout.max_new_tokens": 4 if student == "tiny" else 256,
        "batch.prompts": 32,
        "optimizer.lr": 1e-3 if student == "tiny" else 1e-5,
        "steps": steps,
        "seed": 1,
        "output.dir": str(folder),
    }
    return train(of(**{**settings, **keys}))


if __name__ == "__main__":
    summary = main(*sys.argv[1:4])
    for when in ("before", "after"):
        print(f"held-out right answers {when}: {summary[f'eval/reward_greedy_{when}']:.3f}")
