# SPDX-License-Identifier: Apache-2.0
"""The Triton formulas against the reference's: values, and derivatives against its autograd."""

import pytest
import torch

pytest.importorskip("triton")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from rlkern.kernels import _math  # noqa: E402
from rlkern.reference.token_objective import GATES, KL_ESTIMATORS  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
BLOCK = 512
EPS = torch.finfo(torch.float32).eps


@triton.jit
def gate_kernel(
    x_ptr, r_ptr, a_ptr, out_ptr, d_ptr, c0, c1, GATE: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value, derivative = GATE(tl.load(x_ptr + at), tl.load(r_ptr + at), tl.load(a_ptr + at), c0, c1)
    tl.store(out_ptr + at, value)
    tl.store(d_ptr + at, derivative)


@triton.jit
def kl_kernel(x_ptr, y_ptr, out_ptr, d_ptr, KL: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value, derivative = KL(tl.load(x_ptr + at), tl.load(y_ptr + at))
    tl.store(out_ptr + at, value)
    tl.store(d_ptr + at, derivative)


@triton.jit
def expm1_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, _math.expm1(tl.load(x_ptr + at)))


def run(kernel, *inputs, outputs=2, **arguments):
    """Returns the outputs of a kernel over flat inputs, padded to whole blocks."""
    size = inputs[0].numel()
    grid = triton.cdiv(size, BLOCK)
    padded = [torch.nn.functional.pad(x, (0, grid * BLOCK - size)).to(DEVICE) for x in inputs]
    out = [torch.full_like(padded[0], torch.nan) for _ in range(outputs)]
    positional = arguments.pop("scalars", ())
    kernel[(grid,)](*padded, *out, *positional, BLOCK=BLOCK, enable_fp_fusion=True, **arguments)
    return [x[:size].cpu() for x in out]


def reference_run(formula, logprob, *rest):
    """Returns a reference formula's value and derivative in log π."""
    leaf = logprob.clone().requires_grad_()
    value = formula(leaf, *rest)
    (derivative,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), derivative


def assert_no_worse(got, eager, oracle):
    """Asserts error ≤ 2 × the reference's own error in float32 + 4 ulp."""
    for x, e, exact in zip(got, eager, oracle, strict=True):
        error, own = ((y.double() - exact).abs().max() for y in (x, e))
        assert error <= 2 * own + 4 * EPS * exact.abs().max(), (error, own)


def grid(log_ratios):
    """Returns (logprob, log_ratio, advantage) of every combination."""
    logprobs = torch.tensor([-1e-7, -0.01, -0.7, -3.0, -20.0])
    advantages = torch.tensor([-2.5, -1.0, 0.0, 1e-3, 1.7])
    return [x.flatten() for x in torch.meshgrid(logprobs, log_ratios, advantages, indexing="ij")]


def test_the_tables_list_the_same_formulas_in_the_same_order():
    assert list(_math.GATES) == list(GATES)
    assert list(_math.KL_ESTIMATORS) == list(KL_ESTIMATORS)


@pytest.mark.parametrize("width", [1e-3, 0.5, 3.0])
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.2, 0.28), (0.0, 0.0)])
@pytest.mark.parametrize("gate", GATES)
def test_a_gate_has_the_value_and_derivative_of_the_reference(gate, clip, width):
    logprob, log_ratio, advantage = grid(torch.linspace(-width, width, 97))

    def formula(x, shift, a):
        return GATES[gate](x, x - x.detach() + shift, a, *clip)

    got = run(gate_kernel, logprob, log_ratio, advantage, scalars=clip, GATE=_math.GATES[gate])
    eager = reference_run(formula, logprob, log_ratio, advantage)
    wide = [x.double() for x in (logprob, log_ratio, advantage)]
    assert_no_worse(got, eager, reference_run(formula, *wide))


@pytest.mark.parametrize("width", [1e-4, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_a_kl_estimator_has_the_value_and_derivative_of_the_reference(name, width):
    logprob = -torch.linspace(0, 8, 500)
    ref = logprob + torch.linspace(-width, width, 500)
    formula = KL_ESTIMATORS[name]
    got = run(kl_kernel, logprob, ref, KL=_math.KL_ESTIMATORS[name])
    oracle = reference_run(formula, logprob.double(), ref.double())
    assert_no_worse(got, reference_run(formula, logprob, ref), oracle)


def test_a_nan_ratio_shows_in_the_loss_and_its_derivative():
    nan = torch.full((2,), torch.nan)
    value, derivative = run(
        gate_kernel, nan, nan, torch.tensor([1.0, -1.0]), scalars=(0.2, 0.2),
        GATE=_math.GATES["ppo_clip"],
    )  # fmt: skip
    assert value.isnan().all() and derivative.isnan().all()


def test_expm1_does_not_cancel_near_zero():
    tiny = -torch.logspace(-30, 1.3, 1000)
    x = torch.cat([tiny, -tiny, torch.tensor([0.0, -torch.inf])])
    (got,) = run(expm1_kernel, x, outputs=1)
    exact = torch.expm1(x.double())
    relative = (got.double() - exact).abs() / exact.abs().clamp(min=1e-300)
    # A GPU's exp rounds its argument times log₂ e, so at −20 it is good to about 20 ulp.
    assert relative.max() <= (4 if DEVICE == "cpu" else 64) * EPS
