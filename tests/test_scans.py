# SPDX-License-Identifier: Apache-2.0
"""Scans and advantages as operations: layouts, threads, gradients, compilation, whitening."""

import math

import pytest
import torch
import torch.multiprocessing as mp
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern.backends import _load

BACKENDS = [name for name in ("eager", "cpu", "triton") if _load(name)[1] is None]
NATIVE = pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ extension is not built")
LENGTHS = (1, 3, 0, 16, 17, 40, 64, 65, 33, 5, 2, 15, 31, 48, 1, 7, 12, 29)


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def rows(lengths=LENGTHS, dtype=torch.float32, seed=0):
    """Returns reward, value, mask, what is no padding, cu_seqlens; NaN wherever nothing counts."""
    random = torch.Generator().manual_seed(seed)
    B, T = len(lengths), max(lengths)
    keep = torch.arange(T) < torch.tensor(lengths)[:, None]
    mask = keep & (torch.rand(B, T, generator=random) < 0.7)
    reward, value = torch.randn(2, B, T, generator=random, dtype=dtype)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    return (*(x.masked_fill(~mask, math.nan) for x in (reward, value)), mask, keep, cu_seqlens)


def lengths_for(backend):
    """Returns lengths around the tiles of a backend; the interpreter takes long for each."""
    return (3, 0, 65, 1) if backend == "triton" else LENGTHS


def per_sequence(n, dtype=torch.float32, seed=1):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("numbers", (True, False), ids=("numbers", "per sequence"))
def test_packed_advantages_have_the_bits_of_padded_ones(backend, numbers):
    reward, value, mask, keep, cu_seqlens = rows(lengths_for(backend))
    count = len(reward)
    options = {"discount": 0.9, "gae_lambda": 0.8, "bootstrap": per_sequence(count, seed=4)}
    if not numbers:
        options |= {"discount": per_sequence(count), "gae_lambda": per_sequence(count, seed=2)}
    padded = rlkern.gae(reward, value, mask, **options)
    inputs = (x[keep] for x in (reward, value, mask))
    packed = rlkern.gae(*inputs, cu_seqlens=cu_seqlens, **options)
    for x, y in zip(packed, padded):
        assert x.equal(y[keep]) and y[~keep].eq(0).all() and x.isfinite().all()


def test_a_packed_scan_has_the_bits_of_a_padded_one(backend):
    *_, keep, cu_seqlens = rows(lengths_for(backend))
    bias, decay = torch.randn(2, *keep.shape, generator=torch.Generator().manual_seed(3))
    decay[:, ::7] = 0
    padded = rlkern.reverse_scan(torch.where(keep, bias, 0.0), decay)
    packed = rlkern.reverse_scan(bias[keep], decay[keep], cu_seqlens=cu_seqlens.int())
    assert packed.equal(padded[keep])


@NATIVE
@pytest.mark.parametrize("lengths", ((20_000, 8192, 8193, 3, 40_000), (70_001,)))
def test_long_sequences_are_shared_without_changing_a_bit(lengths, poisoned_memory):
    reward, value, mask, keep, cu_seqlens = rows(lengths)
    mask[0, 6000:17_000] = False  # a hole longer than a segment
    flat = [x[keep] for x in (reward, value, mask)]
    options = {"discount": 0.999, "gae_lambda": 0.99, "whiten": True}
    before, results = torch.get_num_threads(), []
    with rlkern.use_backend("cpu"):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(rlkern.gae(*flat, cu_seqlens=cu_seqlens, **options))
            results.append([x[keep] for x in rlkern.gae(reward, value, mask, **options)])
    torch.set_num_threads(before)
    with rlkern.use_backend("eager"):
        wide = (reward.double(), value.double(), mask)
        oracle = [x[keep] for x in rlkern.gae(*wide, **options)]
    for result in results:
        for x, y, exact in zip(result, results[0], oracle):
            assert x.equal(y)
            torch.testing.assert_close(x.double(), exact, rtol=1e-4, atol=1e-4)


@NATIVE
def test_a_million_steps_are_scanned_like_the_formula_says():
    T, discount = 10**6, 0.99999
    one = torch.ones(1, T, dtype=torch.float64)
    with rlkern.use_backend("cpu"):
        x = rlkern.reverse_scan(one, discount * one)
        out = rlkern.gae(one, 0 * one, one == 1, discount=discount, gae_lambda=1.0)
    left = torch.arange(T, 0, -1, dtype=torch.float64)
    expected = (1 - discount**left) / (1 - discount)
    torch.testing.assert_close(x[0], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(out.advantage[0], expected, rtol=1e-9, atol=0)


@NATIVE
def test_a_row_does_not_depend_on_the_rows_beside_it():
    reward, value, mask, *_ = rows()
    with rlkern.use_backend("cpu"):
        whole = rlkern.gae(reward, value, mask)
        order = torch.randperm(len(reward))
        shuffled = rlkern.gae(reward[order], value[order], mask[order])
        for i in range(len(reward)):
            alone = rlkern.gae(reward[i], value[i], mask[i])
            assert alone.advantage.equal(whole.advantage[i])
    assert shuffled.advantage.equal(whole.advantage[order])


def test_a_decay_of_zero_cuts_off_what_is_not_finite(backend):
    bias, decay = torch.ones(9, 40), torch.full((9, 40), 0.5)
    bias[:, 21], bias[:, 30], decay[:, 20] = math.inf, math.nan, 0.0
    x = rlkern.reverse_scan(bias, decay)
    assert x[:, :21].isfinite().all() and (x[:, 20] == 1).all()


@pytest.mark.parametrize("wanted", ("bias", "decay", "bias decay"))
def test_the_gradient_of_a_packed_scan_is_right_for_each_input_alone(wanted, poisoned_memory):
    inputs = {name: torch.rand(9, dtype=torch.float64) for name in ("bias", "decay")}
    inputs["decay"][3] = 0
    leaves = [inputs[name].requires_grad_() for name in wanted.split()]
    cu_seqlens = torch.tensor([0, 4, 4, 5, 9])
    for name in set(BACKENDS) & {"eager", "cpu"}:
        with rlkern.use_backend(name):
            assert torch.autograd.gradcheck(
                lambda *_: rlkern.reverse_scan(**inputs, cu_seqlens=cu_seqlens), leaves
            )


def test_the_raw_operations_pass_opcheck_packed(poisoned_memory):
    bounds, mask = torch.tensor([0, 3, 8]), torch.arange(8) % 3 > 0
    x = torch.rand(8, requires_grad=True)
    torch.library.opcheck(torch.ops.rlkern.reverse_scan.default, (x, x.detach(), bounds))
    numbers = torch.tensor([0.9, 0.8], dtype=torch.float64)
    arguments = (x.detach(), x.detach(), mask, numbers, torch.rand(2), bounds, True)
    torch.library.opcheck(torch.ops.rlkern.gae.default, arguments)


def test_no_shape_and_no_coefficient_compiles_more_than_two_graphs():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def run(reward, value, mask, discount, gae_lambda):
        return rlkern.gae(reward, value, mask, discount=discount, gae_lambda=gae_lambda)

    for B, T, discount, gae_lambda in ((2, 3, 0.9, 0.8), (4, 7, 0.99, 0.95), (5, 9, 0.7, 0.3)):
        reward, value = torch.randn(2, B, T)
        arguments = (reward, value, value > 0, discount, gae_lambda)
        got = run(*arguments)
        expected = rlkern.gae(*arguments[:3], discount=discount, gae_lambda=gae_lambda)
        assert all(x.equal(y) for x, y in zip(got, expected))
    assert counter.frame_count <= 2


def test_whitened_advantages_have_mean_zero_and_variance_one(backend):
    reward, value, mask, *_ = rows((9, 40, 64))
    out, plain = rlkern.gae(reward, value, mask, whiten=True), rlkern.gae(reward, value, mask)
    counted = out.advantage[mask]
    assert counted.mean().item() == pytest.approx(0, abs=1e-6)
    assert counted.var(correction=1).item() == pytest.approx(1, abs=1e-5)
    assert out.advantage[~mask].eq(0).all() and out.target.equal(plain.target)
    torch.testing.assert_close(out.advantage, rlkern.aggregate.whiten(plain.advantage, mask))


def test_advantages_are_whitened_with_either_ddof_or_centred_alone(backend):
    dtype, tolerance = (torch.float32, 1e-5) if backend == "triton" else (torch.float64, 1e-12)
    reward, value, mask, *_ = rows((9, 40, 64), dtype)
    plain = rlkern.gae(reward, value, mask)
    counted = plain.advantage[mask].double()
    ahead = counted - counted.mean()
    variance = {ddof: ahead.square().sum() / (len(counted) - ddof) for ddof in (0, 1)}
    for options, expected in (
        ({"whiten": True, "ddof": 0}, ahead / (variance[0] + 1e-8).sqrt()),
        ({"whiten": True, "ddof": 1}, ahead / (variance[1] + 1e-8).sqrt()),
        ({"whiten": "centered"}, ahead),
    ):
        out = rlkern.gae(reward, value, mask, **options)
        torch.testing.assert_close(
            out.advantage[mask].double(), expected, rtol=tolerance, atol=tolerance
        )
        assert not out.advantage[~mask].any() and out.target.equal(plain.target)


def test_nothing_counted_is_all_zeros(backend):
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    garbage = torch.full((3, 5), math.nan)
    for whiten in (False, True, "centered"):
        out = rlkern.gae(garbage, garbage, nothing, whiten=whiten)
        assert all(x.eq(0).all() for x in out)
    assert rlkern.gae(garbage[:, :0], garbage[:, :0], nothing[:, :0]).advantage.shape == (3, 0)
    assert rlkern.gae(garbage[:0], garbage[:0], nothing[:0], whiten=True).target.shape == (0, 5)


def _whiten_half(rank, address, results):
    torch.set_num_threads(1)
    store = f"file://{address}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    reward, value, mask, *_ = rows()
    part = slice(0, 5) if rank == 0 else slice(5, None)
    group = torch.distributed.group.WORLD
    out = rlkern.gae(reward[part], value[part], mask[part], whiten=True, group=group)
    options = {"whiten": "centered", "group": group}
    centered = rlkern.gae(reward[part], value[part], mask[part], **options)
    results[rank] = [out.advantage.tolist(), centered.advantage.tolist()]
    torch.distributed.destroy_process_group()


def test_two_processes_whiten_like_one(tmp_path):
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_whiten_half, (str(tmp_path / "store"), results), nprocs=2)
        parts = [torch.tensor(first + second) for first, second in zip(results[0], results[1])]
    reward, value, mask, *_ = rows()
    for got, whiten in zip(parts, (True, "centered")):
        expected = rlkern.gae(reward, value, mask, whiten=whiten).advantage
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


one, yes = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
BAD = [
    ({"reward": one.bfloat16()}, TypeError, "reward must be float32 or float64, got .*bfloat16"),
    ({"mask": one}, TypeError, "mask must be bool, got"),
    ({"bootstrap": torch.ones(3)}, ValueError, r"bootstrap must be \(2,\) on cpu, got \(3,\)"),
    ({"discount": torch.ones(3)}, ValueError, r"discount must be \(2,\) on cpu, got \(3,\)"),
    ({"gae_lambda": "x"}, TypeError, "gae_lambda must be a number, got 'x'"),
    ({"cu_seqlens": torch.tensor([0, 3])}, ValueError, "cu_seqlens must be"),
    ({"group": object()}, ValueError, "group belongs to whiten=True"),
    ({"whiten": "center"}, ValueError, "whiten must be False, True or 'centered', got 'center'"),
    ({"whiten": True, "ddof": 2}, ValueError, "ddof must be 0 or 1, got 2"),
    ({"ddof": 0}, ValueError, "ddof belongs to whiten=True, got whiten=False"),
]


@pytest.mark.parametrize("changed,error,sentence", BAD)
def test_bad_arguments_are_refused_in_a_sentence(changed, error, sentence):
    with pytest.raises(error, match=f"gae: {sentence}"):
        rlkern.gae(**{"reward": one, "value": one, "mask": yes, **changed})


@pytest.mark.parametrize("bounds", ([0, 2], [1, 6], [0, 4, 3, 6], [0, 9, 6]))
def test_bounds_that_do_not_cover_the_steps_are_refused(bounds):
    flat, bounds = torch.ones(6), torch.tensor(bounds)
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the number of rows 6"):
        rlkern.reverse_scan(flat, flat, cu_seqlens=bounds)
    if "cpu" in BACKENDS:
        from rlkern.backends import cpu as native

        with pytest.raises(ValueError, match="reverse_scan: cu_seqlens must rise from 0 to"):
            native.reverse_scan(flat, flat, bounds)
