# SPDX-License-Identifier: Apache-2.0
"""The temporal-difference loss of action values, its metrics, its gradient and the errors."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.backends.eager.value_loss import VALUE_KINDS
from rlkern.backends.triton._value import loss_and_metrics, new_sums, store_block_sums, value_term

# Elements of a (rows, actions) tile; longer rows are walked in blocks of the same size.
_TILE = 512
_ROWS = [
    "q_ptr", "action_ptr", "reward_ptr", "done_ptr", "next_q_ptr", "other_ptr", "next_action_ptr",
    "weight_ptr", "sums_ptr", "grad_ptr", "error_ptr",
]  # fmt: skip


@triton.jit
def _largest(x, j, A):
    """Returns (largest value, its first index) of rows of a tile; NaN is larger than anything."""
    best = tl.max(tl.where(x == x, x, float("inf")), 1)
    lost = tl.max((x != x).to(tl.int32), 1) > 0
    hit = tl.where(lost[:, None], x != x, x == best[:, None])
    index = tl.min(tl.where(hit, j, A), 1)
    return tl.where(lost, float("nan"), best), index


@triton.jit
def _following(
    next_q_ptr, other_ptr, next_action_ptr, row, follows, A, BOOTSTRAP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns the value of the next state of each row, 0 for a row that nothing follows."""
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    index = tl.zeros((ROWS,), tl.int64)
    total = tl.zeros((ROWS,), tl.float32)
    if BOOTSTRAP == "sarsa":
        index = tl.load(next_action_ptr + row, mask=follows, other=0)
    else:
        for start in range(0, A, BLOCK):
            j = start + tl.arange(0, BLOCK)[None, :]
            at, read = row[:, None] * A + j, follows[:, None] & (j < A)
            if BOOTSTRAP == "double":
                x = tl.load(other_ptr + at, mask=read, other=float("-inf"))
            else:
                x = tl.load(next_q_ptr + at, mask=read, other=float("-inf"))
            if BOOTSTRAP == "twin_min":
                other = tl.load(other_ptr + at, mask=read, other=float("-inf"))
                x = tl.where((x != x) | (x < other), x, other)
            if BOOTSTRAP == "expected":
                p = tl.load(other_ptr + at, mask=read, other=0.0)
                total += tl.sum(tl.where(p != 0, p * x, 0.0), 1)
            else:
                block_best, block_index = _largest(x, j, A)
                better = (block_best > best) | ((block_best != block_best) & (best == best))
                best = tl.where(better, block_best, best)
                index = tl.where(better, block_index, index)
    if BOOTSTRAP == "expected":
        return tl.where(follows, total, 0.0)
    if (BOOTSTRAP == "sarsa") or (BOOTSTRAP == "double"):
        known = follows & (index >= 0) & (index < A)  # else NaN, not foreign memory
        best = tl.load(next_q_ptr + row * A + index, mask=known, other=float("nan"))
    return tl.where(follows, best, 0.0)


@triton.jit(do_not_specialize=["N", "A", "blocks"], do_not_specialize_on_alignment=_ROWS)
def td_loss_kernel(
    q_ptr, action_ptr, reward_ptr, done_ptr, next_q_ptr, other_ptr, next_action_ptr, weight_ptr,
    sums_ptr, grad_ptr, error_ptr, N: tl.int64, A: tl.int64, blocks: tl.int64,
    discount: tl.float32, delta: tl.float32,
    BOOTSTRAP: tl.constexpr, PENALTY: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per ROWS transitions.

    - reads one value of each row of q, and the next values of rows that are not done; of a row of
      weight 0 nothing but the weight
    - writes the gradient, mostly zeros, one error per row and eight sums per program
    - never materialises targets
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < N
    weight = tl.load(weight_ptr + row, mask=inside, other=0.0)
    counted = weight != 0
    action = tl.load(action_ptr + row, mask=counted, other=-1)
    known = counted & (action >= 0) & (action < A)  # else NaN, not foreign memory
    value = tl.load(q_ptr + row * A + action, mask=known, other=float("nan"))
    value = tl.where(counted, value, 0.0)
    follows = counted & (tl.load(done_ptr + row, mask=counted, other=1) == 0)
    following = _following(
        next_q_ptr, other_ptr, next_action_ptr, row, follows, A, BOOTSTRAP, ROWS, BLOCK
    )
    target = tl.load(reward_ptr + row, mask=counted, other=0.0) + discount * following
    term, slope, clipped = value_term(value, target, value, 0.0, delta, PENALTY, "free")
    store_block_sums(sums_ptr, blocks, counted, weight * term, value, target, clipped)
    tl.store(error_ptr + row, target - value, mask=inside)
    slope = tl.where(counted, weight * slope, 0.0)
    for start in range(0, A, BLOCK):
        j = start + tl.arange(0, BLOCK)[None, :]
        grad = tl.where(j == action[:, None], slope[:, None], 0.0)
        tl.store(grad_ptr + row[:, None] * A + j, grad, mask=inside[:, None] & (j < A))


def td_loss(
    q: Tensor,
    action: Tensor,
    reward: Tensor,
    done: Tensor,
    next_q: Tensor,
    other: Tensor | None,
    next_action: Tensor | None,
    weight: Tensor,
    bootstrap: str,
    kind: str,
    coef: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_q, error)."""
    grad_q, error = torch.empty_like(q), torch.empty_like(reward)
    N, A = q.shape
    width = 32 if A <= 32 else 256
    rows = _TILE // width
    blocks = triton.cdiv(N, rows)
    sums = new_sums(q, blocks)
    with torch.cuda.device_of(q):
        if N:
            td_loss_kernel[(blocks,)](
                q, action, reward, done, next_q, other, next_action, weight, sums, grad_q, error,
                N, A, blocks, *coef.tolist(), BOOTSTRAP=bootstrap,
                PENALTY=VALUE_KINDS[kind].penalty.__name__, ROWS=rows, BLOCK=width,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        loss, metrics = loss_and_metrics(sums)
    return loss, metrics, grad_q, error
