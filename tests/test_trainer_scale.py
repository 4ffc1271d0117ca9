# SPDX-License-Identifier: Apache-2.0
"""A run of two processes is the run of one, with whole weights and with spread ones, and a run of
any number of processes is gone on with by any other.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed_helpers import spawn
from safetensors.torch import load_file
from scale_helpers import as_one_of_two, assert_same_curve, no_plot
from torch._dynamo.testing import CompileCounterWithBackend
from trainer_helpers import settings, small, tiny_policy

import rlkern
from rlkern.runs.logs import read_metrics
from rlkern.runs.parquet import read_step, steps_in
from rlkern.trainer import UserError, loop, train
from rlkern.trainer.models.policy import hidden_states
from rlkern.trainer.processes.parallel import check_parallel
from rlkern.trainer.processes.world import World
from rlkern.trainer.rollout.sampler import Sampling, random_numbers, sample
from rlkern.trainer.rollout.text import encode
from rlkern.trainer.show.keys import COMPLETIONS

LONG, CUT = 3, 2
SPREAD = {"parallel": "fsdp2", "memory__share_prompts": False}
RUNS = {
    # Micro-batches, minibatches, and a critic whose warm-up leaves the policy without gradients.
    "ddp": {
        "algorithm": "ppo", "critic__kind": "separate", "critic__warmup": 1,
        "batch__minibatches": 2, "batch__micro_batches": 2,
    },
    # Three prompts in three pieces, and fewer where groups are dropped: shares are uneven or empty.
    "fsdp2": {
        **SPREAD, "algorithm": "dapo", "batch__prompts": 3, "rollout__group_size": 2,
        "groups__rounds": 1, "batch__minibatches": 1, "batch__micro_batches": 3,
        "coefficients__kl_coef": 0.01,
    },
    # Fewer prompts than processes where groups are dropped and a greedy answer is asked to each.
    "greedy": {
        "algorithm": "remax", "groups__kind": "dynamic", "groups__rounds": 1, "batch__prompts": 2,
        "rollout__group_size": 2,
    },
    "lora": {
        **SPREAD, "lora__rank": 4, "memory__gradient_checkpointing": True,
        "coefficients__kl_coef": 0.01,
    },
}  # fmt: skip


def run_of(folder, name, of, **changes):
    """Returns the settings of a few steps, with evaluations and a checkpoint on the way."""
    short = {"steps": LONG, "sft__steps": 2, "eval__every": CUT, "output__save_every": CUT}
    own = {**short, "eval__items": 8, **RUNS[name], "name": f"{name} of {of}"}
    return small(Path(folder), **{**own, **changes})


def in_every_process(rank: int) -> None:
    """Runs everything as one of two processes that torchrun started."""
    as_one_of_two(rank)
    folder = os.environ["SCALE"]
    for name in RUNS:
        train(run_of(folder, name, "one, then two"), resume=True)
        train(run_of(folder, name, "two, then one", steps=CUT))
        if rank == 0:
            copy_run(folder, name, "two, then one", "two")
        dist.barrier()
        train(run_of(folder, name, "two"), resume=True)


def copy_run(folder, name, of, to) -> None:
    """Copies a run that was cut, for two ways of going on with it."""
    runs = Path(folder) / "runs"
    shutil.copytree(runs / f"{name} of {of}", runs / f"{name} of {to}", symlinks=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns a folder with each run by one process, by two, and by either after the other."""
    folder = tmp_path_factory.mktemp("scale")
    os.environ["SCALE"] = str(folder)
    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "plot_curves", no_plot)
    for name in RUNS:
        train(run_of(folder, name, "one, then two", steps=CUT))
        copy_run(folder, name, "one, then two", "one")
        train(run_of(folder, name, "one"), resume=True)
    (folder / "ranks").mkdir()
    spawn(in_every_process, 2, folder / "ranks")
    for name in RUNS:
        train(run_of(folder, name, "two, then one"), resume=True)
    patch.undo()
    return folder / "runs"


@pytest.mark.parametrize("who", ("two", "one, then two", "two, then one"))
@pytest.mark.parametrize("name", RUNS)
def test_the_number_of_processes_does_not_change_a_curve(runs, name, who):
    assert_same_curve(
        read_metrics(runs / f"{name} of {who}"), read_metrics(runs / f"{name} of one"), LONG
    )


@pytest.mark.parametrize("name", RUNS)
def test_the_completions_of_two_processes_are_those_of_one(runs, name):
    of_one, of_two = (runs / f"{name} of {who}" / COMPLETIONS for who in ("one", "two"))
    assert steps_in(of_two) == steps_in(of_one) == [1, CUT, LONG]
    for step in steps_in(of_one):
        for one, two in zip(read_step(of_one, step), read_step(of_two, step), strict=True):
            for key, value in one.items():
                same = value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-4)
                assert two[key] == same, (step, key)


def test_a_checkpoint_of_two_processes_holds_whole_weights(runs):
    for name in RUNS:
        one, two = (
            load_file(runs / f"{name} of {who}" / f"checkpoint-{LONG}" / "optimizer.safetensors")
            for who in ("one", "two")
        )
        assert {key: x.shape for key, x in one.items()} == {key: x.shape for key, x in two.items()}


def test_settings_that_processes_cannot_follow_are_refused():
    two = World(0, 2)
    with pytest.raises(UserError, match="memory.share_prompts must be false with parallel fsdp2"):
        check_parallel(settings(parallel="fsdp2"), two)
    for key in ("batch.prompts", "eval.items"):
        with pytest.raises(
            UserError, match=f"{key} must be at least the number of processes, got 1"
        ):
            check_parallel(settings(**{key.replace(".", "__"): 1}), two)
    check_parallel(settings(parallel="fsdp2"), World())


def rollout_of(policy, length):
    """Returns a prompt with two answers, each of a length in tokens."""
    sampling = Sampling(length, torch.tensor([99]), 1.0, 0, 1.0)
    uniform = random_numbers(torch.Generator().manual_seed(length), 2, sampling)
    prompts = encode(policy, ["1" * length], max_new_tokens=length)
    return sample(policy, prompts, sampling, group_size=2, uniform=uniform)


def loss_of(head, hidden, rollout):
    """Returns the loss of hidden states, which is all that depends on a rollout's lengths."""
    weight = rlkern.aggregate.token_weight(rollout.mask, "token_mean")
    return rlkern.linear_policy_loss(
        hidden, head, rollout.token, torch.tensor([1.0, -0.5]), rollout.mask,
        weight=weight, algorithm="reinforce",
    ).loss  # fmt: skip


def decoded(decoder, rollout):
    """Returns the hidden states that score a rollout's tokens, of whole rows."""
    G, width = rollout.group_size, rollout.prompt.shape[1]
    seen = torch.cat([rollout.prompt_mask.repeat_interleave(G, 0), rollout.present], 1)
    token = torch.cat([rollout.prompt.repeat_interleave(G, 0), rollout.token], 1)
    position = (seen.long().cumsum(-1) - 1).clamp(min=0)
    mask = seen.long()
    found = decoder(input_ids=token, attention_mask=mask, position_ids=position, use_cache=False)
    return found.last_hidden_state[:, width - 1 : -1]


def test_padding_to_a_bucket_changes_no_loss_and_no_gradient():
    policy, results = tiny_policy(), []
    rollout = rollout_of(policy, 5)
    wide = rollout.padded(8)
    assert wide.token.shape == (2, 8) and wide.prompt.shape == (1, 8)
    for one in (rollout, wide):
        policy.model.zero_grad()
        hidden = hidden_states(policy, one, share_prompts=True)
        loss = loss_of(policy.head.parameters()["weight"], hidden, one)
        loss.backward()
        results.append((loss.detach(), policy.model.get_input_embeddings().weight.grad.clone()))
    for plain, padded in zip(*results):
        torch.testing.assert_close(padded, plain)


@pytest.mark.parametrize("part", ("model", "loss"))
def test_lengths_of_one_bucket_are_compiled_once(part):
    policy = tiny_policy()
    head, width = policy.head.parameters()["weight"], policy.model.config.hidden_size
    rollouts = [rollout_of(policy, length) for length in (8, 5)]
    run = {
        "model": lambda one: decoded(policy.model.base_model, one),
        "loss": lambda one: loss_of(head, torch.zeros(*one.token.shape, width), one),
    }[part]

    def graphs(bucket):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled, counts = torch.compile(run, backend=counter, dynamic=False), []
        for rollout in rollouts:
            compiled(rollout.padded(bucket))
            counts.append(counter.frame_count)
        return counts

    assert graphs(8) == [1, 1]
    assert graphs(1) == [1, 2]
