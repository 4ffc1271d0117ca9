# SPDX-License-Identifier: Apache-2.0
"""A run on a file of one's own is the same with two processes as with one, and each goes on with
what the other saved."""

import os
from pathlib import Path

import pytest
import torch.distributed as dist
from data_helpers import data_file
from distributed_helpers import spawn
from scale_helpers import as_one_of_two, assert_same_curve, no_plot
from trainer_helpers import small

from rlkern.runs.logs import read_metrics
from rlkern.trainer import loop, train

LONG, CUT = 2, 1
FORMS = {
    "grpo": "chats", "ppo": "prompts", "sft": "messages", "dpo": "chat_pairs", "kto": "labels",
    "reward_model": "pairs",
}  # fmt: skip
SAMPLES = {"reward__functions": "trainer_rewards:even_digits", "rollout__max_new_tokens": 4}


def run_of(folder, algorithm, of, **changes):
    """Returns the settings of two steps on a file."""
    given = {"algorithm": algorithm, "sft": None, "steps": LONG, "eval__items": 8, **changes}
    if algorithm in ("grpo", "ppo"):
        given |= SAMPLES
    given |= {
        "output__save_every": 1,
        "eval__every": 1,
        "batch__micro_batches": 2,
        "name": f"{algorithm} of {of}",
    }
    return small(Path(folder), data__train=f"{folder}/{FORMS[algorithm]}.jsonl", **given)


def in_every_process(rank: int) -> None:
    """Runs everything as one of two processes that torchrun started."""
    as_one_of_two(rank)
    for algorithm in FORMS:
        train(run_of(os.environ["SCALE"], algorithm, "two, then one", steps=CUT))
        train(run_of(os.environ["SCALE"], algorithm, "two"))
        dist.barrier()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns a folder with each run by one process, by two, and by one after two."""
    folder = tmp_path_factory.mktemp("scale")
    for form in FORMS.values():
        data_file(folder, form)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALE", str(folder))
        patch.setattr(loop, "plot_curves", no_plot)
        (folder / "ranks").mkdir()
        spawn(in_every_process, 2, folder / "ranks")
        for algorithm in FORMS:
            train(run_of(folder, algorithm, "one"))
            train(run_of(folder, algorithm, "two, then one"), resume=True)
    return folder / "runs"


@pytest.mark.parametrize("who", ("two", "two, then one"))
@pytest.mark.parametrize("algorithm", FORMS)
def test_the_number_of_processes_does_not_change_a_run_on_a_file(runs, algorithm, who):
    assert_same_curve(
        read_metrics(runs / f"{algorithm} of {who}"),
        read_metrics(runs / f"{algorithm} of one"),
        LONG,
    )
