# SPDX-License-Identifier: Apache-2.0
"""What is special to the Triton kernels: block seams, strides, 64-bit offsets, carries.

Conformance with float64 over all cases is tests/test_conformance.py; here the same bound on shapes
that only this backend can get wrong.
"""

import mmap

import pytest
import torch

pytest.importorskip("triton")
from rlkern.backends import eager as reference
from rlkern.backends import triton as kernels  # noqa: E402
from rlkern.backends.eager.token_logprob import Softmax  # noqa: E402
from rlkern.backends.eager.token_objective import METRICS, Objective, Rows  # noqa: E402
from rlkern.backends.triton._rows import launch_shape  # noqa: E402
from rlkern.ops.group_advantage import group_segments  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
OBJECTIVE = Objective("ppo_clip", "token", "k3", (0.2, 0.28, 0.0, 0.0), 0.1, 0.01)
SEAMS = [1, 2, 127, 128, 129, 1023, 1025, 4095, 4096, 4097, 8192, 65537, 73728, 73729]


def random_batch(V, B=1, T=3, dtype=torch.float32, seed=0):
    """Returns (logits, token, advantage, weight, old_logprob, ref_logprob, inv_temperature)."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    token = torch.randint(0, V, (B, T), generator=random)
    token[0, 0] = V - 1  # the last column of the last block
    logits = (3 * normal(B, T, V)).to(dtype)
    inv_temperature = torch.rand((B, T), generator=random) + 0.5
    z = logits.float() * inv_temperature[..., None]
    level = z.log_softmax(-1).gather(-1, token[..., None])[..., 0]
    vectors = (normal(B, T), torch.rand((B, T), generator=random) + 0.1,
               level + 0.2 * normal(B, T), level + 0.2 * normal(B, T), inv_temperature)  # fmt: skip
    return [x.to(DEVICE) for x in (logits, token, *vectors)]


def wide(inputs):
    """Returns the same inputs in float64 on the CPU."""
    return [
        x.cpu().double() if x is not None and x.is_floating_point() else x.cpu() for x in inputs
    ]


def loss_of(backend, inputs, objective=OBJECTIVE, grad=None):
    """Returns (loss, metrics, gradient) of a backend's policy_loss."""
    logits, token, *rows, inv_temperature = inputs
    grad = torch.full(logits.shape, torch.nan).to(logits) if grad is None else grad
    arguments = (logits, token, Rows(*rows), Softmax(inv_temperature), objective, grad)
    return *backend.policy_loss(*arguments), grad


def joined(outputs):
    """Returns (loss and metrics, gradient): the loss inherits the ulps of the log-probabilities."""
    loss, metrics, grad = outputs
    return torch.cat([loss[None], metrics]), grad


def assert_no_worse(got, eager, oracle, moved=None):
    """Asserts error ≤ 2 × the reference's own error in the same dtype + 4 ulp, output by output.

    Of results and, where the oracle of logits an ulp away is given, of these: a GPU's powers of 2
    are of rounded arguments.
    """
    moved = oracle if moved is None else moved
    for i, (x, e, exact, other) in enumerate(zip(got, eager, oracle, moved, strict=True)):
        x, e = x.cpu().double(), e.cpu().double()
        assert x.isfinite().all(), i
        error, own = (x - exact).abs().max(), (e - exact).abs().max()
        ulp = torch.finfo(got[i].dtype).eps * exact.abs().max() + (other - exact).abs().max()
        assert error <= 2 * own + 4 * ulp, (i, error.item(), own.item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("V", SEAMS)
def test_the_seams_between_blocks_do_not_show(V, dtype):
    inputs = random_batch(V, dtype=dtype)
    outputs = [loss_of(*args) for args in ((kernels, inputs), (reference, inputs))]
    oracle = loss_of(reference, wide(inputs))
    assert_no_worse(*(joined(x) for x in (*outputs, oracle)))


@pytest.mark.parametrize("V", [8192, 8193, 20000])
def test_leading_blocks_of_minus_infinity_do_not_make_nan(V):
    inputs = random_batch(V)
    inputs[0][0, 0, : V - 1] = -torch.inf
    inputs[0][0, 1, 5:] = -torch.inf
    inputs[1][0, 1] = 3
    outputs = [loss_of(*args) for args in ((kernels, inputs), (reference, inputs))]
    oracles = [wide(inputs), wide(inputs)]
    oracles[1][0] *= 1 + torch.finfo(torch.float32).eps
    oracles = [loss_of(reference, x) for x in oracles]
    assert_no_worse(*(joined(x) for x in (*outputs, *oracles)))


def room_for(elements):
    """Returns bfloat16 memory with as much before it; on the CPU untouched pages cost nothing."""
    if DEVICE == "cuda":
        return torch.empty(2 * elements, dtype=torch.bfloat16, device=DEVICE)[elements:]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE on Linux
    memory = mmap.mmap(-1, 2 * 2 * elements, flags)
    return torch.frombuffer(memory, dtype=torch.bfloat16)[elements:]


def test_rows_far_apart_are_addressed_with_64_bits():
    V, stride = 9000, 2**31 + 24
    # An offset that wraps to 32 bits falls before the first row, into memory that is there.
    far = room_for(stride + V).as_strided((2, 1, V), (stride, V, 1))
    inputs = random_batch(V, B=2, T=1, dtype=torch.bfloat16)
    near = loss_of(kernels, inputs)
    far.copy_(inputs[0])
    loss, metrics, grad = loss_of(kernels, [far, *inputs[1:]], grad=far)
    assert torch.equal(grad, near[2]) and loss == near[0] and torch.equal(metrics, near[1])


@pytest.mark.parametrize("V", [21, 8200, 8208])
def test_strides_and_the_place_of_the_gradient_do_not_change_a_bit(V):
    inputs = random_batch(V, B=2, T=2, dtype=torch.bfloat16)
    plain = loss_of(kernels, inputs)
    time_slice = torch.zeros(2, 3, V, dtype=torch.bfloat16, device=DEVICE)[:, :-1]
    padded = torch.zeros(2, 2, V + 8, dtype=torch.bfloat16, device=DEVICE)[..., :V]
    batch_inside = torch.zeros(2, 2, V, dtype=torch.bfloat16, device=DEVICE).transpose(0, 1)
    for view in (time_slice, padded, batch_inside):
        view.copy_(inputs[0])
        apart = loss_of(kernels, [view, *inputs[1:]])
        in_place = loss_of(kernels, [view, *inputs[1:]], grad=view)
        for got in (apart, in_place):
            assert all(torch.equal(x, y) for x, y in zip(got, plain, strict=True))


@pytest.mark.parametrize("V", [21, 9000])
def test_a_row_gives_the_same_bits_in_any_batch(V):
    logits, *rows = random_batch(V, B=1, T=4)
    whole = loss_of(kernels, [logits, *rows])
    again = loss_of(kernels, [logits, *rows])
    assert all(torch.equal(x, y) for x, y in zip(whole, again, strict=True))
    part = [x[:, 2:3].contiguous() for x in (logits, *rows)]
    assert torch.equal(loss_of(kernels, part)[2], whole[2][:, 2:3])
    order = torch.tensor([3, 0, 2, 1], device=DEVICE)
    shuffled = [x[:, order].contiguous() for x in (logits, *rows)]
    assert torch.equal(loss_of(kernels, shuffled)[2], whole[2][:, order])


def test_the_loss_of_many_rows_is_summed_over_all_of_them():
    x = torch.linspace(-1, 0, 2500, device=DEVICE).reshape(1, -1)
    weight = torch.ones_like(x)
    args = (x, x.abs(), x + 0.5, weight, x - 0.1, x + 0.1)

    def objective(backend, logprob, entropy, *rows):
        return backend.token_objective(logprob, entropy, Rows(*rows), None, OBJECTIVE)

    eager, oracle = objective(reference, *args), objective(reference, *wide(args))
    assert_no_worse(objective(kernels, *args), eager, oracle)


@pytest.mark.parametrize("V", [21, 9000])
def test_rows_of_weight_zero_are_in_no_sum_whatever_they_hold(V):
    inputs = random_batch(V, B=1, T=6)
    counted = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool, device=DEVICE)
    alone = loss_of(kernels, [x[:, counted].contiguous() for x in inputs])
    for x in (inputs[0], inputs[2], *inputs[4:]):
        x[:, ~counted] = torch.nan
    inputs[1][:, ~counted] = -100
    inputs[3][:, ~counted] = 0.0
    loss, metrics, grad = loss_of(kernels, inputs)
    torch.testing.assert_close(loss, alone[0])
    torch.testing.assert_close(metrics, alone[1])
    assert torch.equal(grad[:, counted], alone[2]) and (grad[:, ~counted] == 0).all()


def test_a_batch_without_rows_has_no_loss_and_empty_metrics():
    inputs = [
        torch.zeros(2, 0, 21, device=DEVICE),
        torch.zeros(2, 0, dtype=torch.int64, device=DEVICE),
    ]
    inputs += [torch.zeros(2, 0, device=DEVICE) for _ in range(5)]
    loss, metrics, _ = loss_of(kernels, inputs)
    expected = [0.0] * (len(METRICS) - 2) + [float("inf"), float("-inf")]
    assert loss == 0 and metrics.tolist() == expected


def test_a_token_outside_the_vocabulary_gives_nan_instead_of_foreign_memory():
    logits, token, *_ = random_batch(21)
    for outside in (-1, 21, 2**40):
        token[0, 1] = outside
        logprob = kernels.token_logprob(logits, token, None, Softmax())[0]
        assert logprob.isnan().tolist() == [[False, True, False]]


def test_a_nan_logit_makes_its_row_nan_and_no_other():
    inputs = random_batch(8200)
    inputs[0][0, 1, 7] = torch.nan
    loss, _, grad = loss_of(kernels, inputs)
    assert loss.isnan() and grad.isnan().any(-1).tolist() == [[False, True, False]]


def test_without_a_gradient_the_logits_stay_and_the_loss_is_the_same():
    logits, token, *rows, inv_temperature = inputs = random_batch(9000)
    before = logits.clone()
    softmax = Softmax(inv_temperature)
    loss, metrics = kernels.policy_loss(logits, token, Rows(*rows), softmax, OBJECTIVE, None)
    assert torch.equal(logits, before)
    with_gradient = loss_of(kernels, inputs)
    torch.testing.assert_close(loss, with_gradient[0])
    torch.testing.assert_close(metrics, with_gradient[1])


@pytest.mark.parametrize("T", [1, 127, 128, 129, 256, 257, 1025])
def test_the_scan_carries_from_block_to_block(T):
    random = torch.Generator().manual_seed(T)
    bias = torch.randn(2, T, generator=random).to(DEVICE)
    decay = (1.01 * torch.rand(2, T, generator=random) ** 0.01).to(DEVICE)
    oracle = reference.reverse_scan(bias.cpu().double(), decay.cpu().double())
    eager = reference.reverse_scan(bias, decay)
    assert_no_worse([kernels.reverse_scan(bias, decay)], [eager], [oracle])


@pytest.mark.parametrize("cut", [500, 510, 511, 512])
def test_a_decay_of_zero_cuts_off_what_is_not_finite_also_between_blocks(cut):
    bias, decay = torch.ones(1, 2000, device=DEVICE), torch.full((1, 2000), 0.5, device=DEVICE)
    bias[0, cut + 1], bias[0, cut + 2], decay[0, cut] = torch.inf, torch.nan, 0.0
    x = kernels.reverse_scan(bias, decay)
    assert x[0, : cut + 1].isfinite().all() and x[0, cut] == 1


@pytest.mark.parametrize("kind", ["normalized", "centered", "leave_one_out"])
def test_groups_of_every_size_and_order_get_their_advantages(kind):
    reward = torch.randn(400, generator=torch.Generator().manual_seed(0))
    group = torch.tensor([0] * 200 + [5] * 129 + [-3] * 68 + [9, 7, 7])[torch.randperm(400)]
    reward[[3, 50]] = torch.nan
    order, offset = group_segments(group)
    args = (kind, 1e-4, 1)
    oracle = reference.group_advantage(reward.double(), order, offset, *args)
    eager = reference.group_advantage(reward, order, offset, *args)
    got = kernels.group_advantage(*(x.to(DEVICE) for x in (reward, order, offset)), *args)
    assert_no_worse([got], [eager], [oracle])
    assert (got.cpu()[reward.isnan()] == 0).all() and (got.cpu()[group == 9] == 0).all()


def test_a_float64_call_is_refused_with_a_reason():
    assert "float32" in kernels.unsupported("policy_loss", "cuda", torch.float64)
    assert "bfloat16" in kernels.unsupported("token_logprob", "cuda", torch.float64)
    assert kernels.unsupported("policy_loss", "cuda", torch.bfloat16) is None
    assert "mps" in kernels.unsupported("policy_loss", "mps", torch.float32)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_row_is_swept_in_the_smallest_block_that_takes_it(itemsize):
    largest = launch_shape(1 << 18, itemsize).block
    assert largest == 16384 // itemsize
    for V in (1, 21, 128, 129, 1000, 4096, largest, largest + 1, 151936):
        block, warps = launch_shape(V, itemsize)
        assert block == largest or block >= V
        assert block == 128 or 2 * V > block
        assert warps == max(1, 8 * block // largest)
