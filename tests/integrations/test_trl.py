# SPDX-License-Identifier: Apache-2.0
"""TRL's trainers with rlkern's log-probabilities log what they log without."""

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")

from peft import LoraConfig  # noqa: E402
from trl.trainer import utils  # noqa: E402

from rlkern.integrations import PatchError, patch, refusal, status  # noqa: E402

from .trl_runs import compared, run  # noqa: E402

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
GRPO = [
    {"loss_type": loss, "importance_sampling_level": level, "entropy_coef": entropy, "beta": 0.04,
     "num_iterations": 2}
    for loss, level, entropy in itertools.product(LOSSES, ("token", "sequence"), (0.0, 0.01))
]  # fmt: skip
OPTIONS = [
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    {"gradient_checkpointing": True},
    {"top_entropy_quantile": 0.2},
    {"off_policy_mask_threshold": 0.5, "num_iterations": 2},
    {"use_bias_correction_kl": True, "beta": 0.04, "num_iterations": 2},
    {"delta": 1.5, "num_iterations": 2},
    {"cast_lm_head_to_fp32": True},
    {"temperature": 0.7},
]
OTHERS = [
    ("rloo", {"beta": 0.05}),
    ("dpo", {}),
    ("dpo", {"loss_type": "ipo"}),
    ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    ("dpo", {"use_weighting": True}),
    ("kto", {}),
    ("sft", {}),
    ("sft", {"loss_type": "dft"}),
]


def assert_same(kind, model, tmp_path, bound, **options):
    plain, none = run(kind, model, tmp_path, patched=False, **options)
    ours, calls = run(kind, model, tmp_path, patched=True, **options)
    assert none == 0 and calls > 0
    assert len(plain) == len(ours) >= 4
    for before, after in zip(compared(plain), compared(ours)):
        assert before.keys() == after.keys()
        for key, value in before.items():
            if isinstance(value, float):
                close = math.isclose(value, after[key], rel_tol=bound, abs_tol=bound)
                assert close or value != value, (key, value, after[key])


def named(options: dict) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize("options", GRPO, ids=named)
def test_grpo_logs_the_same_numbers_for_each_loss(options, model, tmp_path):
    assert_same("grpo", model, tmp_path, 1e-4, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_grpo_logs_the_same_numbers_with_each_option(options, model, tmp_path):
    assert_same("grpo", model, tmp_path, 1e-4, **options)


@pytest.mark.parametrize("kind,options", OTHERS, ids=lambda x: x if type(x) is str else named(x))
def test_the_other_trainers_log_the_same_numbers(kind, options, model, tmp_path):
    assert_same(kind, model, tmp_path, 1e-4, **options)


def test_adapters_on_the_attention_log_the_same_numbers(model, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    assert_same("grpo", model, tmp_path, 1e-4, peft_config=lora)


BF16 = [("sft", {}), ("grpo", {"beta": 0.04, "num_iterations": 2, "entropy_coef": 0.01})]


@pytest.mark.parametrize("kind,options", BF16, ids=["sft", "grpo"])
def test_bfloat16_logs_the_same_numbers_to_its_digits(kind, options, model, tmp_path):
    assert_same(kind, model, tmp_path, 1e-2, bf16=True, **options)


def renamed(ctx, hidden, weight, bias, labels, temperature, chunk_size):
    """TRL's function with one argument under another name."""


def test_an_argument_of_another_name_is_refused_and_trl_stays_as_it_was(monkeypatch):
    function = utils._ChunkedLogProbFunction
    monkeypatch.setattr(function, "forward", staticmethod(renamed))
    with pytest.raises(PatchError, match="must take .*targets, temperature.*labels, temperature"):
        patch("trl")
    assert utils._ChunkedLogProbFunction is function and status()[0].calls is None
    assert "labels, temperature" in refusal("trl")


def test_the_example_runs_as_printed(model, tmp_path):
    page = Path(__file__).resolve().parents[2] / "examples" / "trl_grpo.py"
    options = ["--model", model, "--steps", "2", "--out", tmp_path]
    done = subprocess.run([sys.executable, page, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"rlkern scored tokens [1-9]\d* times", done.stdout)
