# SPDX-License-Identifier: Apache-2.0
"""A trainer small enough for a test: seconds for a whole run."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rlkern
from rlkern.trainer import Config
from rlkern.trainer.models.policy import make_policy
from rlkern.trainer.rollout.collect import generate, rewarded
from rlkern.trainer.rollout.data import Sampling, encode, stop_tokens
from rlkern.trainer.rollout.sampler import random_numbers, sample
from rlkern.trainer.session import build
from rlkern.trainer.settings import known_algorithms
from rlkern.trainer.tasks.task import make_task

ROOT = Path(__file__).resolve().parents[1]
SMALL = Config(
    device="cpu",
    threads=1,
    sft_steps=12,
    sft_target=0.0,
    sft_batch=16,
    steps=6,
    prompts=4,
    group_size=4,
    lr=1e-3,
    eval_items=40,
    eval_every=3,
    save_every=2,
    degenerate_limit=0,
    reward="trainer_rewards:even_digits",
)


@pytest.fixture
def compiled():
    """Runs a test on compiled or eager kernels: Triton's interpreter takes minutes for a run."""
    with rlkern.use_backend("cpu" if _native() else "eager"):
        yield


def _native():
    try:
        with rlkern.use_backend("cpu"):
            return True
    except rlkern.BackendUnavailable:
        return False


def small(tmp_path, **changes):
    """Returns the small settings with changes, writing below tmp_path."""
    return dataclasses.replace(SMALL, runs_dir=str(tmp_path / "runs"), **changes)


def any_algorithm(tmp_path, algorithm, **changes):
    """Returns a run from random weights whose reward an untrained model already finds at times."""
    even, right = "trainer_rewards:even_digits", "trainer_rewards:right_digits"
    several = "several_rewards" in known_algorithms()[algorithm].needs
    chosen = {
        "algorithm": algorithm,
        "reward": f"{even},{right}" if several else even,
        "sft_steps": 0,
        "prompts": 8,
        "group_size": 8,
        "lr": 2e-3,
        "eval_every": 0,
    }
    return small(tmp_path, **{**chosen, **changes})


def mean_reward(session):
    """Returns the mean reward of four sampled answers to each held-out item."""
    session.generator.manual_seed(7)
    rollout = generate(session, session.policy, session.task.held_out, session.sampling, 4)
    return rewarded(session, session.task.held_out, rollout).reward.mean().item()


def flags(config):
    """Returns the settings as flags of the command line, those that differ from the defaults."""
    default, found = Config(), []
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if value != getattr(default, field.name):
            found += [f"--{field.name}", str(value)]
    return found


def start(*arguments, cwd, **extra):
    """Returns a running process of `rlkern` with these arguments, and variables beside ours."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlkern.cli", *map(str, arguments)],
        cwd=cwd,
        env=child_environment(**extra),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def child_environment(**extra):
    """Returns the environment of a child process that can import the checkout from anywhere."""
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    folders = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, folders))
    return {**kept, "PYTHONPATH": path, "COLUMNS": "200", **extra}


def tiny_policy(alphabet="0123456789+=", seed=0):
    """Returns an untrained character model on the CPU in float32."""
    return make_policy(
        "tiny", alphabet=alphabet, seed=seed, device=torch.device("cpu"), dtype="float32"
    )


def ragged_prompts(policy):
    """Returns prompts of different lengths, so that some rows are padded."""
    return encode(policy, ["1+2=", "12+34=", "9=", "123+456="], max_new_tokens=6)


def ragged_rollout(policy, *, group_size=3, seed=0, **changes):
    """Returns completions of different lengths: the digit 7 ends one, as eos does."""
    seven = policy.tokenizer.encode("7")
    stop = torch.cat([stop_tokens(policy, ""), torch.tensor(seven)])
    sampling = Sampling(6, stop, **changes)
    generator = torch.Generator().manual_seed(seed)
    return sample(
        policy,
        ragged_prompts(policy),
        sampling,
        group_size=group_size,
        uniform=random_numbers(generator, 4 * group_size, sampling),
    )


def small_session(tmp_path, **changes):
    """Returns a session that has not begun."""
    return build(small(tmp_path, **changes), resume_from=None)


def addition_task(eval_items=40):
    """Returns the addition task with a few held-out items."""
    return make_task("addition", seed=0, eval_items=eval_items)


def without_times(lines):
    """Returns metric lines without what two equal runs may differ in."""
    from rlkern.trainer.run.logs import is_time

    return [{key: value for key, value in line.items() if not is_time(key)} for line in lines]
