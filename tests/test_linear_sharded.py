# SPDX-License-Identifier: Apache-2.0
"""A head split by rows over 2 and 3 processes: the numbers of the whole, each rank its gradient."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from distributed_helpers import cuts, spawn
from linear_helpers import PATHS, SOURCES, Problem, evaluated, misses, problem, same_bits
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern.testing.cases import Case

GROUPS = {2: [1, 2], 3: [0, 1, 2]}  # in the pair a process is another rank than in the world
SPLIT = ("weight", "bias", "lora_b")
FULL = {"B": 3, "T": 5, "V": 37, "temperature": "rows", "correction": True}
CASES = {
    "everything": Case("everything", **FULL, softcap=2.0, keep="narrow"),
    "ragged": Case("ragged", **FULL),
    "sequences": Case("sequences", **FULL, algorithm="gspo"),
    "packed": Case("packed", B=1, T=11, V=37, mask="holes", packed=True, algorithm="gmpo"),
    "nothing counted": Case("nothing", B=3, T=5, V=37, mask="none_counted"),
}
DTYPES = {"float32": (torch.float32,), "bfloat16": (torch.bfloat16,),
          "float32 head": (torch.bfloat16, torch.float32)}  # fmt: skip
RUNS = [(path, case, dtype) for path in PATHS for case in CASES for dtype in DTYPES]
ALONE = ("hidden", "lora_a")


def part_of(task: Problem, group) -> Problem:
    """Returns the problem with this rank's rows of the head."""
    rank = dist.get_rank(group)
    first, end = cuts(task.case.V, dist.get_world_size(group))[rank : rank + 2]
    own = {n: x[first:end].contiguous() for n, x in task.sources.items() if n in SPLIT}
    return Problem({**task.sources, **own}, task.batch, task.case)


def split_run(path, task, group, wants=SOURCES, **options):
    return evaluated(PATHS[path][0], part_of(task, group), wants, group=group, wave=4, **options)


def compiled(group) -> tuple[bool, int]:
    """Returns whether compiled calls have the bits of plain ones, and how many were compiled."""
    counter = CompileCounterWithBackend("aot_eager")

    def run(task, leaves):
        return PATHS["loss"][0](task, leaves, group=group, wave=4)

    same, function = [], torch.compile(run, backend=counter, fullgraph=True)
    for B, T in ((2, 3), (3, 4), (4, 7)):
        task = part_of(problem(Case("compiled", B=B, T=T, V=37)), group)
        same.append(same_bits(*(evaluated(f, task) for f in (run, function))))
    return all(same), counter.frame_count


def refusal(function) -> str:
    try:
        function()
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return "nothing was raised"


def refusals(group) -> dict[str, str]:
    """Returns the sentences of calls that must fail, on every rank before it waits for another."""
    task = part_of(problem(CASES["ragged"]), group)
    task.batch.token[0, 0] = 37
    wrong = {
        n: refusal(partial(f, task, task.leaves(), group=group)) for n, (f, _) in PATHS.items()
    }
    task = part_of(problem(CASES["ragged"]), group)
    leaves = task.leaves()
    loss = PATHS["loss"][0](task, leaves, group=group)["loss"]

    def twice():
        (grad,) = torch.autograd.grad(loss, leaves["weight"], create_graph=True)
        grad.sum().backward()

    return {
        **wrong,
        "group": refusal(lambda: PATHS["loss"][0](task, leaves, group="tp")),
        "twice": refusal(twice),
    }


def in_every_process(rank: int) -> dict:
    """Returns all that the tests look at, by name; each group does it in turn."""
    groups = {n: dist.new_group(members) for n, members in GROUPS.items()}
    found = {}
    for n, members in GROUPS.items():
        if rank not in members:
            continue
        for path, case, dtype in RUNS:
            task = problem(CASES[case], *DTYPES[dtype])
            found[n, path, case, dtype] = split_run(path, task, groups[n])
        task = problem(CASES["ragged"])
        found[n, "alone"] = {x: split_run("loss", task, groups[n], wants=(x,)) for x in ALONE}
        found[n, "refusals"] = refusals(groups[n])
        if n == 2:  # a process for every core
            found[n, "compiled"] = compiled(groups[n])
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, list[dict]]:
    """Returns what each rank of the groups of 2 and of 3 found, from one start of processes."""
    of_processes = spawn(in_every_process, 3, tmp_path_factory.mktemp("ranks"))
    return {n: [of_processes[p] for p in members] for n, members in GROUPS.items()}


WORLDS = pytest.mark.parametrize("ranks", GROUPS)


@WORLDS
@pytest.mark.parametrize("path,case,dtype", RUNS)
def test_a_split_head_gives_the_numbers_of_the_whole_and_every_rank_the_same_bits(
    found, ranks, path, case, dtype
):
    parts = [dict(rank[ranks, path, case, dtype]) for rank in found[ranks]]
    own = [{n: part.pop(f"grad_{n}") for n in SPLIT} for part in parts]
    assert all(same_bits(part, parts[0]) for part in parts[1:])
    whole = {f"grad_{n}": torch.cat([x[n] for x in own]) for n in SPLIT}
    task = problem(CASES[case], *DTYPES[dtype])
    assert not misses({**parts[0], **whole}, task, PATHS[path][1])


@WORLDS
@pytest.mark.parametrize("wanted", ALONE)
def test_the_gradient_of_what_all_ranks_hold_is_summed_when_it_is_wanted_alone(
    found, ranks, wanted
):
    for rank in found[ranks]:
        alone, together = rank[ranks, "alone"][wanted], rank[ranks, "loss", "ragged", "float32"]
        assert same_bits(alone, {name: together[name] for name in alone})


@WORLDS
def test_what_is_wrong_is_said_on_every_rank(found, ranks):
    for rank in found[ranks]:
        said = rank[ranks, "refusals"]
        for path in PATHS:
            assert "token must be in [0, 37) where mask is True, got 37" in said[path]
        assert said["group"] == "linear_policy_loss: group must be a ProcessGroup, got str"
        assert "double backward" in said["twice"]


def test_compiled_calls_with_a_split_head_have_the_bits_of_plain_ones(found):
    for rank in found[2]:
        same, graphs = rank[2, "compiled"]
        assert same and graphs <= 2


def test_one_rank_with_the_whole_vocabulary_gives_the_loss_without_a_group(tmp_path):
    address = f"file://{tmp_path / 'meeting'}"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        task = problem(CASES["everything"])
        got = evaluated(PATHS["loss"][0], task, group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    assert torch.equal(got["loss"], evaluated(PATHS["loss"][0], task)["loss"])
    assert rlkern.metrics_dict(got["metrics"])
