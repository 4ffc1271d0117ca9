# SPDX-License-Identifier: Apache-2.0
"""GRPO on your own file, with your own reward.

python examples/own_data.py                    a tiny model, two-digit sums
python examples/own_data.py MODEL FILE.jsonl   a model and a file with prompt and answer
"""

import json
import sys
from pathlib import Path

from rlkern.trainer import train
from rlkern.trainer.settings import of


def score(prompts, completions, answer, **columns):
    """Returns a reward for each completion; every column of the file is an argument."""
    found = []
    for text, right in zip(completions, answer):
        close = sum(a == b for a, b in zip(text, right)) / len(right)
        found.append(1.0 if text.strip() == right else 0.5 * close)
    return found


def write_sums(path, count=30):
    """Writes a file of plain rows: a prompt and its answer."""
    with path.open("w") as file:
        for a in range(count):
            for b in range(count):
                row = {"prompt": f"{a:02d}+{b:02d}=", "answer": f"{a + b:03d}"}
                print(json.dumps(row), file=file)
    return path


def main(model="tiny", file=None, folder="runs", steps=60, **keys):
    """Returns the summary of a run, with the held-out reward before and after it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    data = file or write_sums(Path(folder) / "sums.jsonl")
    settings = {
        "algorithm": "grpo",
        "model": model,
        "data.train": str(data),
        "reward.functions": "own_data:score",
        "rollout.max_new_tokens": 4 if model == "tiny" else 256,
        "batch.prompts": 32,
        "steps": steps,
        "output.dir": str(folder),
    }
    return train(of(**{**settings, **keys}))  # of() checks the keys and makes the settings


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    summary = main(*sys.argv[1:3])
    for when in ("before", "after"):
        print(f"held-out reward {when}: {summary[f'eval/reward_sampled_{when}']:.3f}")
