# SPDX-License-Identifier: Apache-2.0
"""A trainer small enough for a test: seconds for a whole run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_rewards import even_digits

import rlkern
from rlkern.algorithms import declarations
from rlkern.runs.settings.layers import Layer, dotted
from rlkern.trainer import build, preflight
from rlkern.trainer.collect import generate, rewarded
from rlkern.trainer.models.load import make_policy
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.sampler import Sampling, random_numbers, sample
from rlkern.trainer.rollout.text import encode, stop_tokens
from rlkern.trainer.settings import Settings, dump, of
from rlkern.trainer.settings import changed as with_changes
from rlkern.trainer.settings.resolve import resolved
from rlkern.trainer.tasks.addition import addition

ROOT = Path(__file__).resolve().parents[1]
# Keys are dotted; in keyword arguments two underscores stand for a dot.
SMALL = {
    "device": "cpu",
    "threads": 1,
    "sft.steps": 12,
    "sft.target": 0.0,
    "sft.batch": 16,
    "steps": 6,
    "batch.prompts": 4,
    "rollout.group_size": 4,
    "optimizer.lr": 1e-3,
    "eval.items": 40,
    "eval.every": 3,
    "output.save_every": 2,
    "reward.degenerate_limit": 0,
    "reward.functions": "trainer_rewards:even_digits",
}


def keyed(changes):
    """Returns keyword arguments as dotted keys: lora__rank is lora.rank."""
    return {key.replace("__", "."): value for key, value in changes.items()}


def settings(**changes):
    """Returns the settings of keyword arguments, a__b for the key a.b, over the defaults."""
    return of(**keyed(changes))


def changed(given, **changes):
    """Returns settings with changes, a__b for the key a.b."""
    return with_changes(given, **keyed(changes))


@pytest.fixture
def compiled():
    """Runs a test on compiled or eager kernels: Triton's interpreter takes minutes for a run."""
    with rlkern.use_backend(fastest()):
        yield


def fastest():
    """Returns the backend of a quick run: the compiled one, or eager without it."""
    try:
        with rlkern.use_backend("cpu"):
            return "cpu"
    except rlkern.BackendUnavailable:
        return "eager"


def asked(name, rewards="task,other:reward", teacher="somewhere"):
    """Returns the keys that an algorithm's run has to say itself, since they have no default."""
    needs, given = declarations()[name].needs, {"several_rewards": ("reward.functions", rewards)}
    given["teacher"] = ("teacher", str(teacher))
    return dict(given[need] for need in needs if need in given)


def even_teacher(folder):
    """Returns the folder of a model that answers sums with even digits, trained the first time."""
    if not folder.is_dir():
        policy = tiny_policy(addition_task().alphabet)
        even = torch.tensor(policy.tokenizer.convert_tokens_to_ids(list("02468")))
        optimizer = torch.optim.Adam(policy.model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(30):
            token = torch.randint(3, len(policy.tokenizer), (16, 12), generator=generator)
            logits = policy.model(token).logits.log_softmax(-1)
            optimizer.zero_grad()
            (-logits[..., even].logsumexp(-1).mean()).backward()
            optimizer.step()
        policy.save(folder)
    return folder


def small(tmp_path, **changes):
    """Returns the small settings with changes, writing below tmp_path; of the small ones an
    algorithm has those that it reads."""
    common = {**SMALL, "output.dir": str(tmp_path / "runs")}
    own = keyed(changes)
    if "teacher" in declarations()[own.get("algorithm", "grpo")].needs:
        common["teacher"] = str(even_teacher(tmp_path / "teacher"))
    if "sft" in own:
        common = {key: value for key, value in common.items() if not key.startswith("sft.")}
    return resolved(Layer("small", common, shared=True), Layer("test", own)).settings


def any_algorithm(tmp_path, algorithm, **changes):
    """Returns a run from random weights whose reward an untrained model already finds at times."""
    even, right = "trainer_rewards:even_digits", "trainer_rewards:right_digits"
    chosen = {
        **SMALL,
        **asked(algorithm, f"{even},{right}", tmp_path / "teacher"),
        "batch.prompts": 8,
        "rollout.group_size": 8,
        "optimizer.lr": 2e-3,
        "eval.every": 0,
        "output.dir": str(tmp_path / "runs"),
    }
    if "teacher" in chosen:
        even_teacher(tmp_path / "teacher")
    plain = {key: value for key, value in chosen.items() if not key.startswith("sft.")}
    return resolved(
        Layer("small", {**plain, "sft": None}, shared=True),
        Layer("test", {"algorithm": algorithm, **keyed(changes)}),
    ).settings


def small_parts(tmp_path, **changes):
    """Returns the parts of a small run that has not begun."""
    return loaded(small(tmp_path, **changes))


def loaded(given, saved=None):
    """Returns the parts of a run, checked as `train` checks them."""
    world = World.start(given.device)
    preflight.check(given, world)
    return build.load(given, world, saved)


def begun(given, folder, saved=None):
    """Returns a run that is ready for its next step: parts, learner and updater."""
    parts = loaded(given, saved)
    return build.begin(parts, folder, saved, say=lambda _: None, after_step=lambda *_: None)


def mean_reward(parts):
    """Returns the mean reward of four sampled answers to each held-out item.

    Where a run has no use for a reward, the share of even digits, as in any_algorithm.
    """
    parts.generator.manual_seed(7)
    rows = generate(parts, parts.policy, parts.task.held_out, parts.sampling, 4)
    rows = rewarded(parts, parts.task.held_out, rows)
    if parts.settings.declared.learns_from == "answers":
        return sum(even_digits(None, rows.text)) / len(rows.text)
    return rows.reward.mean().item()


def flags(given):
    """Returns the settings as flags of the command line, those that are not the algorithm's own."""
    plain = dotted(Settings, dump(of(algorithm=given.algorithm, model=given.model)))
    found = ["--algorithm", given.algorithm]
    for key, value in dotted(Settings, dump(given)).items():
        if plain.get(key, plain) != value and key != "coefficients":
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            found += [f"--{key}", "null" if value is None else text]
    for name, value in given.coefficients.items():
        found += [f"--coefficients.{name}", str(value)]
    return found


def start(*arguments, cwd, **extra):
    """Returns a running process of `rlkern` with these arguments, and variables beside ours."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlkern", *map(str, arguments)],
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


def addition_task(eval_items=40):
    """Returns the addition task with a few held-out items."""
    return addition(seed=0, eval_items=eval_items)


def is_time(key):
    """Returns whether a metric is a time, which two equal runs may differ in."""
    return key.startswith("time/") or key in ("step_time", "seconds")


def without_times(lines):
    """Returns metric lines without what two equal runs may differ in."""
    return [{key: value for key, value in line.items() if not is_time(key)} for line in lines]
