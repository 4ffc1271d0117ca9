# SPDX-License-Identifier: Apache-2.0
"""Calls of a backend's own functions, with inputs that no front door would let through."""

import math
import mmap
from collections.abc import Iterator

import torch

from rlkern.backends import eager
from rlkern.backends import triton as kernels
from rlkern.backends.eager.group_advantage import KINDS
from rlkern.backends.eager.token_objective import Rows
from rlkern.backends.eager.value_loss import FREE, VALUE_KINDS

from .inputs import OBJECTIVE, Bad, bad_rows, inputs, loss, scored, unlike
from .launches import emulated
from .program import PtxFault

COEFFICIENTS = torch.tensor([0.99, 0.95], dtype=torch.float64)
STRIDE = 2**31 + 24


def backward_in_place() -> None:
    """Launches the gradient of log-probabilities, over the logits."""
    given = inputs(1000, dtype=torch.bfloat16)
    scored(kernels, given)


def loss_in_place() -> None:
    """Launches the loss on rows of several blocks, over the logits."""
    given = inputs(4104, dtype=torch.bfloat16)
    loss(kernels, given, given.logits)


def vectors(B: int, T: int) -> None:
    """Launches what sees no vocabulary, on B sequences of T steps."""
    x = torch.linspace(-1, 1, B * T).reshape(B, T)
    one = torch.ones(B, T)
    kernels.reverse_scan(x, one)
    kernels.gae(x, x, one != 0, COEFFICIENTS)
    kernels.value_loss(x, x, x, one, "clipped", torch.tensor([0.2, 1.0]))
    kernels.token_objective(x, one, Rows(x, one, x, x), None, OBJECTIVE)


def bad_vectors() -> Iterator[Bad]:
    """Yields losses of values, scans and advantages of NaN or of nothing."""
    weight, coefs = torch.ones(1, 8), torch.tensor([0.2, 1.0])
    for kind in VALUE_KINDS:
        for which in (0, 1) if VALUE_KINDS[kind].rule == FREE else (0, 2):
            x = [torch.randn(1, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
            x[which][0, 3] = math.nan
            yield Bad(
                f"value_loss {kind}, NaN in the {('value', 'target', 'old value')[which]}",
                lambda b, x=x, kind=kind: list(b.value_loss(*x, weight, kind, coefs)),
            )
    for T in (7, 1500):
        x, decay = torch.ones(1, T), torch.full((1, T), 0.5)
        x[0, T // 2], decay[0, T // 3] = math.nan, 0.0
        yield Bad(f"scan of NaN, {T}", lambda b, x=x, d=decay: [b.reverse_scan(x, d)])
        mask = torch.arange(T)[None] != T // 2
        yield Bad(
            f"advantages of NaN that does not count, {T}",
            lambda b, x=x, mask=mask: list(b.gae(torch.ones_like(x), x, mask, COEFFICIENTS)),
        )
    nothing = torch.zeros(0, 5)
    yield Bad("scan of nothing", lambda b: [b.reverse_scan(nothing, nothing)])
    reward, order, offset = torch.zeros(12), torch.arange(12), torch.arange(0, 15, 3)
    reward[4], offset = math.nan, torch.cat([offset, torch.full((8,), 12)])
    for kind in KINDS:
        yield Bad(
            f"group_advantage {kind} of NaN",
            lambda b, kind=kind: [
                b.group_advantage(reward, order, offset, kind, 1e-4, 1, torch.ones(12))
            ],
        )


def differences(target: str) -> list[str]:
    """Returns what the compiled kernels make of bad inputs that is not what the reference makes."""
    found = []
    for bad in (*bad_rows(), *bad_vectors()):
        want = [x.clone() for x in bad.call(eager)]
        with emulated(target) as machine:
            got = bad.call(kernels)
        outputs = [n for n, (x, y) in enumerate(zip(got, want, strict=True)) if unlike(x, y)]
        found += [f"{bad.name}: output {n}" for n in outputs]
        found += [f"{bad.name}: {race}" for race in machine.races.values()]
    return found


def tokens_outside(target: str) -> list[list[float]]:
    """Returns log π of tokens below and beyond the vocabulary, and of one inside."""
    found = []
    for token in (-1, 300, 2**40, -(2**40), 5):
        given = inputs(300, T=1)
        given.token[0, 0] = token
        with emulated(target):
            found.append(scored(kernels, given)[0].flatten().tolist())
    return found


def fault_of_fresh_logits(target: str) -> str:
    """Returns what the machine says of logits that nobody has written."""
    given = inputs(300)
    with emulated(target):
        try:
            scored(kernels, given._replace(logits=torch.empty_like(given.logits)))
        except PtxFault as fault:
            return str(fault)
    return ""


def far_rows_are_the_same(target: str) -> bool:
    """Returns whether rows more than 2³¹ elements apart have the bits of rows side by side."""
    V = 4100
    given = inputs(V, B=2, T=1, dtype=torch.bfloat16)
    # Pages that nobody touches take no memory; MAP_NORESERVE is 0x4000 on Linux.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (STRIDE + V), flags), dtype=torch.bfloat16)
    far = memory.as_strided((2, 1, V), (STRIDE, V, 1))
    far.copy_(given.logits)
    with emulated(target):
        near = loss(kernels, given)
        apart = loss(kernels, given._replace(logits=far), far)
    return all(torch.equal(x, y) for x, y in zip(near, apart))


def long_scan_errors(target: str) -> tuple[float, float]:
    """Returns the largest error of the form for few long sequences, and eager's own."""
    random = torch.Generator().manual_seed(0)
    x, decay = torch.randn(2, 9000, generator=random), torch.rand(2, 9000, generator=random)
    oracle = eager.reverse_scan(x.double(), decay.double())
    with emulated(target) as machine:
        got = kernels.reverse_scan(x, decay)
    assert not machine.races
    own = eager.reverse_scan(x, decay)
    return tuple(float((y - oracle).abs().max()) for y in (got, own))  # type: ignore[return-value]


def packed_scans_are_the_same(target: str) -> bool:
    """Returns whether rows read 16 bytes at a time have the bits of packed ones, read 4 at a time.

    Of sequences of several blocks, whole and in parts; the packed ones begin anywhere.
    """
    random = torch.Generator().manual_seed(0)
    same = []
    for lengths in ((1, 1100), (3, 4608)):
        bounds = torch.tensor((0, *lengths)).cumsum(0)
        steps = sum(lengths)
        reward, value = torch.randn(2, steps, generator=random)
        mask = torch.rand(steps, generator=random) < 0.6
        decay = torch.where(mask, 0.9, 1.0)
        own = [x[None, lengths[0] :].clone() for x in (reward, value, mask, decay)]
        with emulated(target) as machine:
            packed = [
                *kernels.gae(reward, value, mask, COEFFICIENTS, None, bounds),
                kernels.reverse_scan(reward, decay, bounds),
            ]
            alone = [
                *kernels.gae(*own[:3], COEFFICIENTS),
                kernels.reverse_scan(own[0], own[3]),
            ]
        same += [x[None, lengths[0] :].equal(y) for x, y in zip(packed, alone)]
        same.append(not machine.races)
    return all(same)
