# SPDX-License-Identifier: Apache-2.0
"""TRL's GRPOTrainer with rlkern's kernels: one import and one line; the rest is TRL.

    pip install trl
    python examples/trl_grpo.py --model runs/grpo-tiny-addition/best     # what `make train` left

The model may be any causal language model in a folder; it learns two-digit addition.
"""

import argparse
import random

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import rlkern.integrations


def sums(count: int) -> Dataset:
    """Returns prompts with their right answers: `12+34=` and `046`."""
    draw = random.Random(0)
    pairs = [(draw.randrange(100), draw.randrange(100)) for _ in range(count)]
    return Dataset.from_list(
        [{"prompt": f"{a:02d}+{b:02d}=", "answer": f"{a + b:03d}"} for a, b in pairs]
    )


def exact_match(completions: list[str], answer: list[str], **_) -> list[float]:
    """Returns 1 for a right answer and 0 for any other."""
    return [float(text.strip() == right) for text, right in zip(completions, answer)]


def main() -> None:
    """Trains, and prints the reward of the first and the last step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder in Hugging Face format")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", default="runs/trl", help="where TRL writes")
    given = parser.parse_args()

    rlkern.integrations.patch("trl")
    trainer = GRPOTrainer(
        model=given.model,
        reward_funcs=exact_match,
        train_dataset=sums(1000),
        args=GRPOConfig(
            output_dir=given.out,
            max_steps=given.steps,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=4,
            learning_rate=1e-4,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            bf16=False,
        ),
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    (calls,) = rlkern.integrations.status()[0].calls.values()
    print(f"reward {rewards[0]:.2f} -> {rewards[-1]:.2f}; rlkern scored tokens {calls} times")


if __name__ == "__main__":
    main()
