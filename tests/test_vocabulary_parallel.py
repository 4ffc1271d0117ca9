# SPDX-License-Identifier: Apache-2.0
"""Logits split over 2 and 3 processes: the numbers of the whole, the same bits on every rank."""

import functools

import pytest
import torch
import torch.distributed as dist
from distributed_helpers import (
    key_of,
    sharded_run,
    sharded_runs,
    slice_of,
    spawn,
    without_value_checks,
)
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern.backends import _load
from rlkern.testing.cases import CASES, Case, make_batch
from rlkern.testing.conformance import allowed, error_of, expected
from rlkern.testing.runs import RUNS

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
GROUPS = {2: [1, 2], 3: [0, 1, 2]}  # in the pair a process is another rank than in the world
LARGEST = 60_000
CHOSEN = tuple(case for case in CASES if case.V < LARGEST)
EVERYTHING = Case("everything", B=3, T=4, V=37, temperature="rows", softcap=4.0, keep="narrow")
TERMS = {"entropy_coef": 0.2, "kl_coef": 0.3, "kl_estimator": "k2"}


def leaf_and_batch(group, case=EVERYTHING, dtype=torch.float32):
    batch = make_batch(case, dtype)
    part = slice_of(case, batch.logits, dist.get_world_size(group), dist.get_rank(group))
    return part.clone().requires_grad_(), batch


def loss_of(logits, batch, group, inplace=False, **options):
    return rlkern.policy_loss(
        logits, batch.token, batch.advantage, batch.mask, group=group, inplace=inplace,
        **batch.rows, **batch.softmax, **{**TERMS, **options},
    )  # fmt: skip


def scores_of(logits, batch, group, inplace=False):
    return rlkern.token_logprob(
        logits, batch.token, mask=batch.mask, group=group, inplace=inplace, **batch.softmax
    )


def message_of(error, function) -> str:
    """Returns what function says when it raises this error."""
    try:
        function()
    except error as raised:
        return str(raised)
    return "nothing was raised"


def refusals(group) -> dict[str, str]:
    """Returns the sentences of calls that must fail, on every rank before it waits for another."""
    leaf, batch = leaf_and_batch(group)
    token, keep = batch.token.clone(), batch.keep.clone()
    token[0, 0], keep[0, 0, 0] = 37, 41
    return {
        "token": message_of(
            ValueError, lambda: rlkern.token_logprob(leaf, token, mask=batch.mask, group=group)
        ),
        "keep": message_of(
            ValueError,
            lambda: rlkern.token_logprob(
                leaf, batch.token, mask=batch.mask, keep=keep, group=group
            ),
        ),
        "group": message_of(TypeError, lambda: scores_of(leaf, batch, "tensor parallel")),
    }


def manners(group) -> dict[str, object]:
    """Returns what autograd makes of logits that are split."""
    leaf, batch = leaf_and_batch(group)
    found: dict[str, object] = {}
    with torch.no_grad():
        found["recorded without gradient"] = loss_of(leaf, batch, group).loss.requires_grad
    logits = leaf * 1
    loss = loss_of(logits, batch, group, inplace=True).loss
    before = logits._version
    loss.backward(retain_graph=True)
    found["version bumped"] = logits._version > before
    found["second backward"] = message_of(RuntimeError, loss.backward)
    outputs = loss_of(leaf * 1, batch, group).loss, scores_of(leaf * 1, batch, group).entropy.sum()
    found["double backward"] = [
        message_of(RuntimeError, functools.partial(torch.autograd.grad, x, leaf, create_graph=True))
        for x in outputs
    ]
    strange = torch.full_like(batch.token, 999)
    found["token of nobody"] = without_value_checks(
        lambda: rlkern.token_logprob(leaf.detach(), strange, group=group).logprob
    )
    return found


def one_output(leaf, batch, group, name):
    """Returns the gradient when a single one of the outputs is used."""
    out = getattr(scores_of(leaf, batch, group), name)
    return torch.autograd.grad(out.sum(), leaf)[0]


def in_place(group, backend) -> list[tuple[torch.Tensor, ...]]:
    """Returns pairs of gradients: made separately, and written over the slice."""
    leaf, batch = leaf_and_batch(group, dtype=torch.bfloat16)

    def gradients(inplace):
        loss = loss_of(leaf * 1, batch, group, inplace).loss
        scores = scores_of(leaf * 1, batch, group, inplace).entropy.sum()
        return [torch.autograd.grad(x, leaf)[0] for x in (loss, scores)]

    with rlkern.use_backend(backend):
        return list(zip(gradients(False), gradients(True)))


def rows_elsewhere(group) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scores of rows, and of the same rows in another order and another number."""
    case = Case("order", B=1, T=150, V=301, mask="full")
    leaf, batch = leaf_and_batch(group, case)
    order = torch.randperm(case.T, generator=torch.Generator().manual_seed(1))[:37]
    whole = rlkern.token_logprob(leaf, batch.token, group=group)
    some = rlkern.token_logprob(leaf[:, order].contiguous(), batch.token[:, order], group=group)
    return torch.stack(list(whole))[:, :, order].detach(), torch.stack(list(some)).detach()


def compiled(group) -> dict[str, object]:
    """Returns whether compiled calls have the bits of plain ones, and how many were compiled."""
    counter = CompileCounterWithBackend("aot_eager")

    def both(leaf, batch, clip):
        loss = loss_of(leaf * 1, batch, group, inplace=True, clip_low=clip).loss
        return loss, *scores_of(leaf * 1, batch, group, inplace=True)

    run = torch.compile(both, backend=counter, fullgraph=True)
    equal = []
    for B, T, clip in ((2, 3, 0.2), (3, 4, 0.3), (4, 7, 0.1)):
        case = Case("compiled", B=B, T=T, V=37, softcap=4.0, keep="narrow")
        leaf, batch = leaf_and_batch(group, case)
        results = []
        for function in (both, run):
            loss, *rows = function(leaf, batch, clip)
            total = loss + sum(x.sum() for x in rows if x.requires_grad)
            results.append([loss, *rows, torch.autograd.grad(total, leaf)[0]])
        equal.append(all(torch.equal(x, y) for x, y in zip(*results)))
    return {"equal": equal, "compilations": counter.frame_count}


def in_every_process(rank: int) -> dict:
    """Returns all that the tests look at, by name; each group does it in turn."""
    groups = {n: dist.new_group(members) for n, members in GROUPS.items()}
    found = {}
    for n, members in GROUPS.items():
        if rank not in members:
            continue
        group = groups[n]
        for backend in BACKENDS:
            with rlkern.use_backend(backend):
                for run in sharded_runs(CHOSEN, backend, n):
                    found[key_of(n, backend, *run)] = sharded_run(*run, group)
        leaf, batch = leaf_and_batch(group)
        outputs = ("logprob", "entropy", "lse")
        found["one output", n] = {x: one_output(leaf, batch, group, x) for x in outputs}
        found["refusals", n], found["manners", n] = refusals(group), manners(group)
        found["in place", n] = [x for name in BACKENDS for x in in_place(group, name)]
        found["rows elsewhere", n] = rows_elsewhere(group)
        if n == 2:  # compiling takes longer than all the rest
            found["compiled"] = compiled(group)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, list[dict]]:
    """Returns what each rank of the groups of 2 and of 3 found, from one start of processes."""
    of_processes = spawn(in_every_process, 3, tmp_path_factory.mktemp("ranks"))
    return {n: [of_processes[p] for p in members] for n, members in GROUPS.items()}


WORLDS = pytest.mark.parametrize("ranks", GROUPS)


def same(x, y) -> bool:
    """Returns whether two tensors are equal, a NaN to a NaN."""
    return bool(((x == y) | (x.isnan() & y.isnan())).all())


def oracle_of(operation, case, dtype):
    """Returns what a run must return, and by how much each element may be missed."""
    batch = make_batch(case, dtype)
    precise = batch.to("cpu", torch.float64)
    want = expected(operation, case, dtype, "cpu")
    bound = {
        name: allowed(name, want, x.dtype) if x.numel() else x for name, x in want.eager.items()
    }
    with rlkern.use_backend("eager"):
        if "policy_loss" in operation:
            # Between the passes a logprob is rounded to float32: what such a step makes of the
            # result, when a ratio of exp(20) is made of it, is no error of the combination.
            step = (
                torch.finfo(torch.float32).eps
                * rlkern.token_logprob(
                    precise.logits, precise.token, mask=batch.mask, **precise.softmax
                ).logprob.abs()
            )
            for name in ("old_logprob", "ref_logprob"):
                if getattr(precise, name) is not None:
                    setattr(precise, name, getattr(precise, name) + step)
            for name, moved in RUNS[operation](case, precise).items():
                bound[name] = bound[name] + error_of(moved, want.oracle[name])
    return want, bound


@pytest.mark.conformance
@WORLDS
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_split_logits_give_the_numbers_of_the_whole_and_every_rank_the_same_bits(
    found, ranks, backend, case
):
    for run in sharded_runs((case,), backend, ranks):
        parts = [dict(rank[key_of(ranks, backend, *run)]) for rank in found[ranks]]
        slices = [part.pop("grad_logits") for part in parts]
        for part in parts[1:]:
            assert all(same(x, parts[0][name]) for name, x in part.items())
        got = {**parts[0], "grad_logits": torch.cat(slices, -1)}
        want, bound = oracle_of(*run)
        for name, exact in want.oracle.items():
            assert got[name].shape == exact.shape and got[name].dtype == want.eager[name].dtype
            excess = error_of(got[name], exact) - bound[name]
            assert not (excess > 0).any(), (run[0], run[2], name, excess.max())


@WORLDS
def test_a_gradient_written_over_the_slice_has_the_bits_of_the_separate_one(found, ranks):
    for rank in found[ranks]:
        assert rank["in place", ranks] and all(torch.equal(*x) for x in rank["in place", ranks])


@WORLDS
@pytest.mark.parametrize("output", ("logprob", "entropy", "lse"))
def test_the_gradient_of_one_output_alone_is_that_of_the_whole(found, ranks, output):
    batch = make_batch(EVERYTHING, torch.float64)
    leaf = batch.logits.detach().clone().requires_grad_()
    out = rlkern.token_logprob(leaf, batch.token, mask=batch.mask, **batch.softmax)
    (expected,) = torch.autograd.grad(getattr(out, output).sum(), leaf)
    got = torch.cat([rank["one output", ranks][output] for rank in found[ranks]], -1)
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()


@WORLDS
def test_what_is_wrong_is_said_on_every_rank(found, ranks):
    for rank in found[ranks]:
        said = rank["refusals", ranks]
        assert "token must be in [0, 37) where mask is True, got 37" in said["token"]
        assert "keep must be ids in [0, 37) or -1, got 41" in said["keep"]
        assert "group must be a ProcessGroup, got str" in said["group"]


@WORLDS
def test_autograd_sees_split_logits_as_it_sees_whole_ones(found, ranks):
    for rank in found[ranks]:
        seen = rank["manners", ranks]
        assert seen["recorded without gradient"] is False and seen["version bumped"] is True
        assert "modified by an inplace operation" in seen["second backward"]
        assert all("double backward" in sentence for sentence in seen["double backward"])
        assert seen["token of nobody"].isnan().all()


@WORLDS
def test_a_row_of_split_logits_does_not_depend_on_the_rows_around_it(found, ranks):
    for rank in found[ranks]:
        assert torch.equal(*rank["rows elsewhere", ranks])


def test_compiled_calls_with_split_logits_have_the_bits_of_plain_ones(found):
    for rank in found[2]:
        assert rank["compiled"]["equal"] == [True] * 3
        # One graph for the first shape, one for every other.
        assert rank["compiled"]["compilations"] <= 2
