# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels run by an emulator on the CPU, against the reference.

The emulator (tests/cuda_emulator) takes the place of one header, csrc/cuda/machine.cuh, and runs
every thread of a cluster as a fiber. What it cannot show is speed, and what a real GPU would make
of the few instructions in that header: on a machine with a GPU and the library the same tests run
there, too.
"""

import pytest
import torch
from cuda_helpers import check, needs_compiler

import rlkern
from rlkern.backends import BackendUnavailable, cuda
from rlkern.backends import eager as reference
from rlkern.backends.cuda.library import c_int64, load_library
from rlkern.backends.eager.token_logprob import Softmax, Upstream
from rlkern.testing.cases import CASES, make_batch


@needs_compiler
def test_it_serves_only_where_it_is_asked_for(emulated):
    assert rlkern.backend_name("policy_loss") != "cuda"
    assert "not cuda on cpu: asked for by name only" in rlkern.explain()
    with rlkern.use_backend("cuda"):
        assert rlkern.backend_name("policy_loss") == "cuda"
        with pytest.raises(BackendUnavailable, match="takes float32, bfloat16, float16 here"):
            rlkern.backend_name("policy_loss", dtype=torch.float64)
        with pytest.raises(BackendUnavailable, match="has no gae"):
            rlkern.backend_name("gae")
    with rlkern.use_backend("eager"):
        pass


def moved(x: torch.Tensor, offset: int) -> torch.Tensor:
    """Returns a copy that begins so many elements behind the start of its storage."""
    storage = x.new_zeros(offset + x.numel() + 8)
    return storage[offset : offset + x.numel()].view(x.shape).copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("V", [999, 1000, 50257])
def test_a_rows_bits_do_not_depend_on_its_address(V, dtype, device):
    x = torch.randn(1, 2, V, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    token = torch.tensor([[V - 1, 5]], device=device)
    rows = (token, torch.tensor([[0.5, -1.0]], device=device), torch.ones_like(token) > 0)
    results = []
    with rlkern.use_backend("cuda"):
        for offset in range(0, 16 // x.element_size(), 3):
            with torch.no_grad():
                scored = rlkern.token_logprob(moved(x, offset), token)
            leaf = moved(x, offset).requires_grad_()
            out = rlkern.policy_loss(leaf, *rows, entropy_coef=0.1, algorithm="grpo")
            (grad,) = torch.autograd.grad(out.loss, leaf)
            results.append((*scored, out.loss.detach(), out.metrics, grad))
    for other in results[1:]:
        for name, a, b in zip(range(99), results[0], other):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("V", [13, 1001])
def test_a_gradient_may_lie_at_another_address_than_its_logits(V, dtype, device):
    x = torch.randn(1, 3, V, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    token, one = torch.tensor([[V - 1, 0, 5]], device=device), torch.ones(1, 3, device=device)
    plain = Softmax()
    scored = reference.token_logprob(x, token, None, plain)
    grads = []
    for offset in range(16 // x.element_size()):
        grads.append(moved(torch.zeros_like(x), offset))
        cuda.token_logprob_backward(
            x, token, None, plain, scored.statistics, Upstream(one, one, one), grads[-1]
        )
    expected = torch.empty_like(x)
    reference.token_logprob_backward(
        x, token, None, plain, scored.statistics, Upstream(one, one, one), expected
    )
    torch.testing.assert_close(grads[0], expected, atol=1e-6, rtol=1e-2)
    assert all(torch.equal(grad, grads[0]) for grad in grads)


@needs_compiler
def test_rows_before_clusters_must_fit_one_block_and_larger_ones_are_refused(emulated, monkeypatch):
    monkeypatch.setenv("RLKERN_CUDA_EMULATED_DEVICE", "8")  # as small as an A100
    by_name = {case.name: case for case in CASES}
    check("policy_loss", [by_name["gpt2"]], torch.bfloat16, "cpu")
    token = torch.zeros(1, 1, dtype=torch.int64)
    with (
        rlkern.use_backend("cuda"),
        pytest.raises(RuntimeError, match="a row does not fit the shared memory of this GPU"),
    ):
        rlkern.token_logprob(torch.zeros(1, 1, 151936), token)
    # Without a maximum to find, a row can be cut up: the backward alone takes any.
    x = torch.randn(1, 1, 151936, generator=torch.Generator().manual_seed(2))
    got, expected = torch.empty_like(x), torch.empty_like(x)
    plain, one = Softmax(), torch.ones(1, 1)
    scored = reference.token_logprob(x, token, None, plain)
    for backend, grad in ((cuda, got), (reference, expected)):
        backend.token_logprob_backward(
            x, token, None, plain, scored.statistics, Upstream(one, one, one), grad
        )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-8)


def test_the_factor_of_a_loss_reaches_its_gradient(device):
    x, token = torch.randn(2, 3, 21).to(device), torch.zeros(2, 3, dtype=torch.int64, device=device)
    rows, grads = (token, torch.ones(2, 3, device=device), token == 0), []
    with rlkern.use_backend("cuda"):
        for factor in (1.0, 0.25):
            leaf = x.clone().requires_grad_()
            out = rlkern.policy_loss(leaf, *rows)
            (out.loss * factor).backward()
            grads.append(leaf.grad)
        kept = torch.arange(4, device=device).expand(2, 3, 4)
        with pytest.raises(
            NotImplementedError, match="policy_loss: the cuda backend takes no kept"
        ):
            rlkern.policy_loss(leaf, *rows, keep=kept)
    assert grads[0].abs().sum() > 0
    assert torch.equal(grads[1], grads[0] * 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_tensor_of_any_shape_is_scaled(dtype, device):
    factor = torch.tensor(0.5, device=device)
    stored = torch.randn(5, 7, 1037).to(device, dtype)
    for x in (
        stored[:, :-1, 3:-2], stored[:, 0], stored.transpose(0, 1), stored[0, 0, ::3], stored,
        stored.view(-1), stored[0, 0, 0], stored[:0], stored.expand(2, 5, 7, 1037)[1],
        stored.view(5, 7, 17, 61)[:, 1:, 2:, 1:], stored.view(5, 7, 17, 61)[:, 1:, None, 2:, ::2],
    ):  # fmt: skip
        before = x.clone()
        copied = cuda.scaled(x, factor)
        assert torch.equal(x, before) and torch.equal(copied, before * 0.5)
        kept = stored.clone()
        cuda.scale_(x, factor)
        assert torch.equal(x, before * 0.5)
        changed = (stored != kept).sum()
        assert changed <= x.numel()
        stored.copy_(kept)


def launch_shape(V: int, element_size: int, clusters: bool) -> tuple[int, int, int]:
    """Returns (blocks per row, threads, bytes of shared memory), as csrc/cuda/shape.h has it."""

    def size(blocks):
        groups = -(-V * element_size // 16)
        return 192 + -(-groups // blocks) * 16

    choices = (1, 2, 4, 8) if clusters else (1,)
    blocks = next((b for b in choices if size(b) <= 75 * 1024), choices[-1])
    return blocks, 256, size(blocks)


@needs_compiler
def test_launch_shapes_follow_from_the_length_of_a_row(emulated):
    for V in (1, 7, 1000, 4096, 32000, 50257, 128256, 129920, 151936, 262144):
        for element_size in (2, 4):
            for clusters in (False, True):
                shape = (c_int64 * 3)()
                load_library().rlkern_cuda_shape(V, element_size, clusters, shape)
                assert tuple(shape) == launch_shape(V, element_size, clusters)
    assert launch_shape(151936, 2, True) == (4, 256, 76160)
    assert launch_shape(262144, 4, True)[0] == 8
    # What the largest GPUs give a block; with the 1 KB that the driver takes, three of 228 KB.
    assert launch_shape(262144, 4, True)[2] <= 227 * 1024
    assert 3 * (launch_shape(151936, 2, True)[2] + 1024) <= 228 * 1024


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("V", [4096, 151936])
def test_a_row_is_read_once_and_written_once_and_not_at_all_without_weight(V, dtype, emulated):
    mask = torch.tensor([[True, False, True]])
    x = torch.randn(1, 3, V).to(dtype).requires_grad_()
    token, emulator = torch.zeros(1, 3, dtype=torch.int64), load_library()
    emulator.emulator_begin(0)
    with rlkern.use_backend("cuda"):
        rlkern.policy_loss(x, token, torch.ones(1, 3), mask)
    row_bytes = V * x.element_size()
    assert emulator.emulator_bytes_read() == 2 * row_bytes
    assert emulator.emulator_bytes_written() == 3 * row_bytes


@pytest.mark.parametrize("softcap", [0.0, 20.0])
def test_blocks_of_nothing_but_minus_infinity_change_nothing(softcap, device):
    x = torch.randn(1, 1, 151936).to(device)
    x[..., :60000] = x[..., 120000:] = -torch.inf
    token = torch.tensor([[70000]], device=device)
    plain = Softmax(torch.full((1, 1), 2.0, device=device), softcap)
    got = cuda.token_logprob(x, token, None, plain)
    torch.testing.assert_close(got, reference.token_logprob(x, token, None, plain))
    empty = cuda.token_logprob(torch.full_like(x, -torch.inf), token, None, plain)
    assert empty.logprob.isnan() and empty.row_max == -torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("at", [0, 40000, 50256])
def test_a_nan_among_the_logits_is_heard_of(at, dtype, device):
    x, token = torch.zeros(1, 1, 50257).to(device, dtype), torch.tensor([[7]], device=device)
    x[..., at] = torch.nan
    assert cuda.token_logprob(x, token, None, Softmax()).logprob.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [-3e38, -1e10, -1e9, 3e8, 1e5, 3e38])
def test_equal_logits_of_any_size_are_equally_probable(value, dtype, device):
    x, token = torch.full((1, 1, 999), value), torch.tensor([[7]], device=device)
    x[..., 500:] = -3e38
    x, one, plain = x.to(device, dtype), torch.ones(1, 1, device=device), Softmax()
    scored = cuda.token_logprob(x, token, None, plain)
    grad = torch.empty_like(x)
    cuda.token_logprob_backward(x, token, None, plain, scored.statistics, Upstream(one, one), grad)
    count = 999 if value == -3e38 else 500
    log = torch.full((1, 1), float(count)).log().to(device)
    torch.testing.assert_close(scored.logprob, -log)
    torch.testing.assert_close(scored.entropy, log)
    p = torch.full((count,), -1 / count).to(device, dtype)
    p[7] += 1
    torch.testing.assert_close(grad[0, 0, :count], p)
    assert not grad[0, 0, count:].any()


@pytest.mark.gpu
@pytest.mark.parametrize("V", [50257, 151936])
def test_two_runs_on_a_gpu_have_the_same_bits_in_place_or_not(V):
    pytest.importorskip("hypothesis")
    from batch_helpers import loss_and_gradient, same_bits

    if cuda.unavailable():
        pytest.skip(cuda.unavailable())
    batch = make_batch(next(c for c in CASES if c.name == "all_terms"), torch.bfloat16, "cuda")
    B, T = batch.token.shape
    batch.logits = torch.randn(B, T, V, device="cuda").bfloat16()
    with rlkern.use_backend("cuda"):
        runs = [loss_and_gradient(batch, inplace=inplace) for inplace in (False, False, True, True)]
    assert same_bits(*runs[:2]) and same_bits(*runs[1:3]) and same_bits(*runs[2:])


@needs_compiler
@pytest.mark.parametrize("case", ["gpt2", "qwen", "time_slice", "softcap_temperature_entropy"])
def test_the_order_of_the_threads_does_not_change_a_bit(case, emulated):
    pytest.importorskip("hypothesis")
    from batch_helpers import loss_and_gradient, same_bits, scores_and_gradient

    batch = make_batch(next(c for c in CASES if c.name == case), torch.bfloat16)
    results = []
    for forwards in (0, 1):
        load_library().emulator_begin(forwards)
        with rlkern.use_backend("cuda"):
            scores = scores_and_gradient(batch, inplace=True)
            results.append((*scores, *loss_and_gradient(batch, inplace=True)))
    assert same_bits(*results)
