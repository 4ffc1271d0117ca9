# SPDX-License-Identifier: Apache-2.0
"""The processes of a run share rows, gather them and agree; a single one is left as it is."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from distributed_helpers import spawn
from trainer_helpers import child_environment

from rlkern.trainer import UserError
from rlkern.trainer.processes.world import World


@dataclasses.dataclass
class Part:
    """Something with tensors and texts in it, as a rollout is."""

    token: torch.Tensor
    texts: list


def in_every_process(rank: int) -> dict:
    world = World(rank, 2)
    first, last = world.share(5)
    rows = torch.arange(first, last)[:, None].expand(-1, rank + 2)
    return {
        "main": world.is_main,
        "rows": world.gather_rows(rows, fill=-1),
        "masks": world.gather_rows(rows > 2),
        "parts": world.gather(Part(rows.clone(), [f"text of {rank}"])),
        "sum": world.sum(torch.tensor([0.1, 2.0]) * (rank + 1)),
        "any": [world.any(rank == 1), world.any(False)],
        "from main": world.from_main(f"said by {rank}"),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """Returns what each of two processes found, from one start of them."""
    return spawn(in_every_process, 2, tmp_path_factory.mktemp("ranks"))


def test_rows_of_every_process_are_gathered_in_order_and_filled_up(found):
    expected = [[0, 0, -1], [1, 1, -1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]
    for one in found:
        assert one["rows"].tolist() == expected
        assert one["masks"].dtype == torch.bool
        assert one["masks"].tolist() == [[x > 2 for x in row] for row in expected]


def test_parts_with_tensors_and_texts_arrive_whole(found):
    for one in found:
        assert [part.texts for part in one["parts"]] == [["text of 0"], ["text of 1"]]
        assert one["parts"][1].token.tolist() == [[2, 2, 2], [3, 3, 3], [4, 4, 4]]


def test_processes_agree_to_the_last_bit(found):
    assert [one["main"] for one in found] == [True, False]
    for one in found:
        assert torch.equal(one["sum"], torch.tensor([0.1, 2.0]) + torch.tensor([0.2, 4.0]))
        assert one["any"] == [True, False]
        assert one["from main"] == "said by 0"


@pytest.mark.parametrize("size", (1, 2, 3, 7))
@pytest.mark.parametrize("count", (0, 1, 5, 16))
def test_shares_follow_each_other_and_are_even(size, count):
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert [i for first, last in shares for i in range(first, last)] == list(range(count))
    lengths = [last - first for first, last in shares]
    assert max(lengths) - min(lengths) <= 1


def test_a_single_process_gets_back_what_it_gave_without_any_group():
    code = (
        "import sys, torch; from rlkern.trainer.processes.world import World\n"
        "world, x = World.start('cpu'), torch.ones(2, 3)\n"
        "assert world.gather_rows(x) is x and world.sum(x) is x and world.gather(x)[0] is x\n"
        "assert world.share(5) == (0, 5) and world.is_main and world.any(True)\n"
        "assert not torch.distributed.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], env=child_environment(), check=True)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="GPU of its own, got 1"):
        World.start("cuda")


def test_launchers_can_start_the_package_itself():
    run = [sys.executable, "-m", "rlkern", "--help"]
    said = subprocess.run(run, env=child_environment(), check=True, capture_output=True, text=True)
    assert said.stdout.startswith("usage: rlkern <command>")
