# SPDX-License-Identifier: Apache-2.0
"""The Triton formulas against the reference's: values, and derivatives against its autograd."""

import pytest
import torch

pytest.importorskip("triton")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from rlkern.backends.eager.kl import KL_ESTIMATORS, OF_LEVEL  # noqa: E402
from rlkern.backends.eager.token_objective import GATES, LEVELS  # noqa: E402
from rlkern.backends.triton import _gates, _kl, _levels, _math  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
BLOCK = 512
EPS = torch.finfo(torch.float32).eps


@triton.jit
def gate_kernel(
    x_ptr, r_ptr, a_ptr, out_ptr, slope_ptr, ratio_slope_ptr, low_ptr, high_ptr, c,
    GATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, r, a = tl.load(x_ptr + at), tl.load(r_ptr + at), tl.load(a_ptr + at)
    value, slope, ratio_slope, low, high = GATE(x, r, a, c[0], c[1], c[2], c[3])
    tl.store(out_ptr + at, value)
    tl.store(slope_ptr + at, slope)
    tl.store(ratio_slope_ptr + at, ratio_slope)
    tl.store(low_ptr + at, low.to(tl.float32))
    tl.store(high_ptr + at, high.to(tl.float32))


@triton.jit
def kl_kernel(d_ptr, r_ptr, out_ptr, slope_ptr, KL: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value, derivative = KL(tl.load(d_ptr + at), tl.load(r_ptr + at))
    tl.store(out_ptr + at, value)
    tl.store(slope_ptr + at, derivative)


@triton.jit
def function_kernel(x_ptr, out_ptr, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, FUNCTION(tl.load(x_ptr + at)))


def run(kernel, *inputs, outputs=2, scalars=(), **arguments):
    """Returns the outputs of a kernel over flat inputs, padded to whole blocks."""
    size = inputs[0].numel()
    grid = triton.cdiv(size, BLOCK)
    padded = [torch.nn.functional.pad(x, (0, grid * BLOCK - size)).to(DEVICE) for x in inputs]
    out = [torch.full_like(padded[0], torch.nan) for _ in range(outputs)]
    kernel[(grid,)](*padded, *out, *scalars, BLOCK=BLOCK, enable_fp_fusion=True, **arguments)
    return [x[:size].cpu() for x in out]


def slopes(value, *leaves):
    """Returns a value and its derivative in each leaf, 0 where it does not depend on it."""
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), *found


def assert_no_worse(got, eager, oracle, moved):
    """Asserts error ≤ 2 × the reference's own error in float32 + 4 ulp of results and arguments.

    moved is the oracle of arguments that are an ulp away: a GPU's exp rounds its argument.
    """
    for x, e, exact, other in zip(got, eager, oracle, moved, strict=True):
        error, own = ((y.double() - exact).abs().max() for y in (x, e))
        ulp = EPS * exact.abs().max() + (other - exact).abs().max()
        assert error <= 2 * own + 4 * ulp, (error, own)


def grid(log_ratios):
    """Returns (logprob, log_ratio, advantage) of every combination."""
    logprobs = torch.tensor([-1e-7, -0.01, -0.7, -3.0, -20.0])
    advantages = torch.tensor([-2.5, -1.0, 0.0, 1e-3, 1.7])
    return [x.flatten() for x in torch.meshgrid(logprobs, log_ratios, advantages, indexing="ij")]


def reference_gate(gate, coef, dtype, logprob, log_ratio, advantage):
    """Returns (value, slope in log π, slope in the log ratio), (clip low, clip high)."""
    leaves = [x.to(dtype).requires_grad_() for x in (logprob, log_ratio)]
    gated = GATES[gate](*leaves, advantage.to(dtype), *coef)
    return slopes(gated.loss, *leaves), (gated.clip_low, gated.clip_high)


def test_the_tables_list_the_same_formulas_in_the_same_order():
    assert list(_gates.GATES) == list(GATES)
    assert list(_kl.KL_ESTIMATORS) == list(KL_ESTIMATORS)
    assert list(_levels.LEVELS) == list(LEVELS)


@pytest.mark.parametrize("width", [1e-3, 0.5, 3.0])
@pytest.mark.parametrize("coef", [(0.2, 0.28, 3.0, 1.5), (0.5, 0.5, 1.1, 0.3)])
@pytest.mark.parametrize("gate", GATES)
def test_a_gate_has_the_value_derivatives_and_clips_of_the_reference(gate, coef, width):
    inputs = grid(torch.linspace(-width, width, 97))
    *got, low, high = run(gate_kernel, *inputs, outputs=5, scalars=(coef,), GATE=_gates.GATES[gate])
    eager, clips = reference_gate(gate, coef, torch.float32, *inputs)
    oracle = reference_gate(gate, coef, torch.float64, *inputs)[0]
    assert_no_worse(got, eager, oracle, oracle)
    assert torch.equal(low.bool(), clips[0]) and torch.equal(high.bool(), clips[1])


@pytest.mark.parametrize("clip", [(0.0, 0.0, 2.0, 0.0), (0.2, 0.2, 3.0, 0.0)])
@pytest.mark.parametrize("gate", ["ppo_clip", "dual_clip", "cispo"])
def test_a_ratio_of_exactly_one_is_on_the_same_side_of_the_clip(gate, clip):
    inputs = grid(torch.zeros(1))
    *got, low, high = run(gate_kernel, *inputs, outputs=5, scalars=(clip,), GATE=_gates.GATES[gate])
    eager, clips = reference_gate(gate, clip, torch.float32, *inputs)
    assert torch.equal(got[0], eager[0])
    assert torch.equal(low.bool(), clips[0]) and torch.equal(high.bool(), clips[1])


@pytest.mark.parametrize("width", [1e-4, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_a_kl_estimator_has_the_value_and_derivative_of_the_reference(name, width):
    # 0 is left out: there the slope of |d| is anyone's choice.
    d, log_ratio = torch.linspace(-width, width, 500), torch.linspace(0.5, -0.7, 500)

    def reference(dtype, ulp=0.0):
        leaf = torch.zeros(500, dtype=dtype).requires_grad_()
        own = leaf.detach() if name in OF_LEVEL else leaf  # whose ratio is not the token's alone
        moved = -d.to(dtype) * (1 + ulp)
        value = KL_ESTIMATORS[name](leaf, moved, own + log_ratio.to(dtype) * (1 + ulp))
        return slopes(value, leaf)

    got = run(kl_kernel, d, log_ratio, KL=_kl.KL_ESTIMATORS[name])
    wide = torch.float64
    assert_no_worse(got, reference(torch.float32), reference(wide), reference(wide, EPS))


@pytest.mark.parametrize("gate", ["importance", "ppo_clip", "dual_clip", "cispo", "topr"])
def test_a_nan_ratio_shows_in_the_loss(gate):
    nan = torch.full((1,), torch.nan)
    value, *_ = run(
        gate_kernel, nan, nan, torch.tensor([-1.0]), outputs=5, scalars=((0.2, 0.2, 3.0, 1.0),),
        GATE=_gates.GATES[gate],
    )  # fmt: skip
    assert value.isnan().all()


def relative_error(function, exact, x):
    (got,) = run(function_kernel, x, outputs=1, FUNCTION=function)
    expected = exact(x.double())
    return ((got.double() - expected).abs() / expected.abs().clamp(min=1e-300)).max()


def test_expm1_does_not_cancel_near_zero():
    tiny = -torch.logspace(-30, 1.3, 1000)
    x = torch.cat([tiny, -tiny, torch.tensor([0.0, -torch.inf])])
    # A GPU's exp rounds its argument times log₂ e, so at −20 it is good to about 20 ulp.
    assert relative_error(_math.expm1, torch.expm1, x) <= (4 if DEVICE == "cpu" else 64) * EPS


def test_tanh_and_its_slope_have_all_their_digits_everywhere():
    tiny = torch.logspace(-30, 1.5, 2000)
    x = torch.cat([tiny, -tiny, torch.tensor([0.0])])
    assert relative_error(_math.tanh, torch.tanh, x) <= 2 * EPS
    # 2^t with t rounded: where x = 30 it is good to about 40 ulp.
    assert relative_error(_math.tanh_slope, lambda y: 1 / y.cosh() ** 2, x) <= 64 * EPS


def test_tanh_keeps_infinities_and_nan():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    (got,) = run(function_kernel, x, outputs=1, FUNCTION=_math.tanh)
    assert got[:2].tolist() == [1.0, -1.0] and got[2].isnan()
