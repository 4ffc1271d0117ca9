# SPDX-License-Identifier: Apache-2.0
"""The terms of a loss, token by token."""

import pytest
import torch

import rlkern
from rlkern.testing.cases import Case, make_batch

TERMS = {"kl_coef": 0.3, "entropy_coef": 0.02}
ALGORITHMS = ("grpo", "gspo", "gmpo", "cispo")


def given(algorithm, packed=False):
    """Returns log π and entropies as leaves, and what else a loss reads."""
    shape = {"B": 1, "T": 11, "packed": True} if packed else {"B": 3, "T": 5}
    batch = make_batch(Case("terms", V=7, mask="holes", **shape), torch.float64)
    batch = batch.to("cpu", torch.float64)
    scored = rlkern.token_logprob(batch.logits, batch.token, mask=batch.mask)
    rows = {
        "advantage": batch.advantage, "mask": batch.mask, "old_logprob": batch.old_logprob,
        "ref_logprob": batch.ref_logprob, "algorithm": algorithm,
        "correction": batch.advantage.sin().abs(), **TERMS,
    }  # fmt: skip
    if packed:
        rows["cu_seqlens"] = batch.cu_seqlens
    garbage = [
        torch.where(batch.mask, x, torch.nan).detach() for x in (scored.logprob, scored.entropy)
    ]
    return [x.requires_grad_() for x in garbage], rows


@pytest.mark.parametrize("packed", (False, True))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_terms_sum_to_the_loss_and_so_do_their_gradients(algorithm, packed):
    leaves, rows = given(algorithm, packed)
    weight = torch.linspace(0.1, 2, rows["mask"].numel(), dtype=torch.float64)
    rows["weight"] = weight.reshape(rows["mask"].shape)
    found = []
    for reduction in ("sum", "none"):
        out = rlkern.token_objective(leaves[0], entropy=leaves[1], reduction=reduction, **rows)
        assert out.loss.shape == (() if reduction == "sum" else rows["mask"].shape)
        gradients = torch.autograd.grad(out.loss.sum(), leaves)
        found.append([out.loss.sum(), out.metrics, *gradients])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert not out.loss[~rows["mask"]].any() and found[0][2].any()


def test_with_weights_of_one_the_terms_are_the_losses_written_out():
    leaves, rows = given("grpo")
    rows.update(weight=rows["mask"].double(), clip_low=0.2, clip_high=0.2)
    out = rlkern.token_objective(leaves[0], entropy=leaves[1], reduction="none", **rows)
    logprob, entropy = (x.detach() for x in leaves)
    ratio, d = (logprob - rows["old_logprob"]).exp(), logprob - rows["ref_logprob"]
    advantage = rows["advantage"]
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    expected = -rows["correction"] * gain + 0.3 * ((-d).exp() - 1 + d) - 0.02 * entropy
    expected = torch.where(rows["mask"], expected, 0.0)
    torch.testing.assert_close(out.loss.detach(), expected, rtol=1e-12, atol=1e-14)
