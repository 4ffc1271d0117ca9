# SPDX-License-Identifier: Apache-2.0
"""The token objective on log-probabilities that are already there: loss, metrics and gradients."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkern.kernels._math import GATES, KL_ESTIMATORS
from rlkern.kernels._rows import row_scalar
from rlkern.kernels._score import loss_and_metrics, new_statistics, score_tokens
from rlkern.reference.token_objective import Objective

_BLOCK = 256
_ROWS = [
    "logprob_ptr", "entropy_ptr", "advantage_ptr", "weight_ptr", "old_ptr", "ref_ptr", "stats_ptr",
    "grad_logprob_ptr", "grad_entropy_ptr",
]  # fmt: skip


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=_ROWS)
def token_objective_kernel(
    logprob_ptr, entropy_ptr, advantage_ptr, weight_ptr, old_ptr, ref_ptr, stats_ptr,
    grad_logprob_ptr, grad_entropy_ptr, N: tl.int64,
    c0: tl.float32, c1: tl.float32, kl_coef: tl.float32, entropy_coef: tl.float32,
    GATE: tl.constexpr, KL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per block of tokens.

    - reads the scalars of its tokens; of a token of weight 0 nothing but the weight
    - writes two gradients and eight statistics per token
    - never materialises ratios or KL terms
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < N
    weight = tl.load(weight_ptr + row, mask=inside, other=0.0)
    counted = weight != 0
    logprob = tl.load(logprob_ptr + row, mask=counted, other=0.0)
    entropy = tl.load(entropy_ptr + row, mask=counted, other=0.0)
    advantage = tl.load(advantage_ptr + row, mask=counted, other=0.0)
    old = row_scalar(old_ptr, row, counted, 0.0)
    ref = row_scalar(ref_ptr, row, counted, 0.0)
    d_logprob, d_entropy = score_tokens(
        row, inside, N, weight, logprob, entropy, advantage, old, ref, stats_ptr,
        c0, c1, kl_coef, entropy_coef, GATE, KL, old_ptr is not None, ref_ptr is not None,
    )  # fmt: skip
    tl.store(grad_logprob_ptr + row, d_logprob, mask=inside)
    tl.store(grad_entropy_ptr + row, d_entropy, mask=inside)


def token_objective(
    logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    weight: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, metrics, grad_logprob, grad_entropy) of loss = Σ weight·ℓ."""
    grads = torch.empty_like(logprob), torch.empty_like(entropy)
    statistics = new_statistics(weight)
    N = weight.numel()
    with torch.cuda.device_of(logprob):
        if N:
            token_objective_kernel[(triton.cdiv(N, _BLOCK),)](
                logprob, entropy, advantage, weight, old_logprob, ref_logprob, statistics,
                *grads, N, *objective.gate_coef, objective.kl_coef, objective.entropy_coef,
                GATE=GATES[objective.gate], KL=KL_ESTIMATORS[objective.kl], BLOCK=_BLOCK,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        loss, metrics = loss_and_metrics(statistics, weight)
    return loss, metrics, *grads
