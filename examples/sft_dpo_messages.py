# SPDX-License-Identifier: Apache-2.0
"""SFT on conversations, then DPO on pairs of answers, both through the model's chat template.

python examples/sft_dpo_messages.py          a tiny model, which gets a template of its own
python examples/sft_dpo_messages.py MODEL    an instruct model in Hugging Face format
"""

import json
import sys
from pathlib import Path

from rlkern.trainer import train
from rlkern.trainer.settings import of


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write_data(folder):
    """Returns two files: conversations, and conversations with a better and a worse end."""
    chats, pairs = folder / "chats.jsonl", folder / "pairs.jsonl"
    with chats.open("w") as first, pairs.open("w") as second:
        for a in range(10):
            for b in range(10):
                asked, right = user(f"{a} plus {b}?"), assistant(f"It is {a + b}.")
                again = [user("Sure?"), assistant("Yes.")]
                print(json.dumps({"messages": [asked, right, *again]}), file=first)
                both = {
                    "chosen": [asked, right],
                    "rejected": [asked, assistant(f"It is {a + b + 1}.")],
                }
                print(json.dumps(both), file=second)
    return chats, pairs


def main(model="tiny", folder="runs", steps=(150, 30), **keys):
    """Returns the summaries of both runs."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chats, pairs = write_data(folder)
    fresh = model == "tiny"
    sft = {
        "algorithm": "sft",
        "model": model,
        "data.train": str(chats),
        "optimizer.lr": 2e-3 if fresh else 1e-5,
        "steps": steps[0],
    }
    dpo = {
        "algorithm": "dpo",
        "model": str(folder / "sft" / f"checkpoint-{steps[0]}"),
        "data.train": str(pairs),
        "optimizer.lr": 1e-4 if fresh else 1e-6,
        "steps": steps[1],
    }
    place = {"output.dir": str(folder), **keys}
    return [train(of(**run, **place, name=run["algorithm"])) for run in (sft, dpo)]


if __name__ == "__main__":
    first, second = main(*sys.argv[1:2])
    print(f"held-out −log π a token after SFT: {first['eval/loss_after']:.3f}")
    print(f"held-out pairs in order after DPO: {second['eval/pair_accuracy_after']:.3f}")
