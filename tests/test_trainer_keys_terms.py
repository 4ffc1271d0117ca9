# SPDX-License-Identifier: Apache-2.0
"""The smallest thing that a key changes: terms of the loss with weights of their own."""

import pytest
import torch
from keys_helpers import calls, holds, policy_at, run_of, steps
from trainer_helpers import compiled  # noqa: F401

import rlkern
from rlkern.trainer.models.policy import token_logprob, token_scores

pytestmark = pytest.mark.usefixtures("compiled")


@holds("loss.entropy_over")
def test_the_entropy_term_weighs_all_tokens_alike_if_it_is_to(tmp_path, monkeypatch):
    seen, found = calls(monkeypatch, rlkern, "linear_policy_loss"), []
    asked = {"coefficients": {"entropy_coef": 0.5}, "groups": "all"}
    for over in ("loss", "tokens"):
        run = run_of(tmp_path / over, algorithm="grpo", **asked, loss__entropy_over=over)
        found.append(steps(run, 1)[0])
    (of_loss, of_tokens), (_, named, _) = found, seen[-1]
    rows = of_tokens.rows
    assert of_loss.rows.entropy_weight is None
    assert torch.equal(named["entropy_weight"], rows.entropy_weight)
    expected = torch.where(rows.mask, 1 / rows.mask.sum(), 0.0)
    torch.testing.assert_close(rows.entropy_weight, expected)
    # The gradients differ by that of 0.5·Σ (weight − entropy_weight)·H.
    policy = policy_at(run, of_tokens)
    entropy = token_scores(policy, rows, run.parts.settings).entropy
    (0.5 * ((rows.weight - rows.entropy_weight) * entropy)[rows.mask].sum()).backward()
    assert_difference(of_tokens, of_loss, policy)


@holds("loss.nll_coef")
def test_right_answers_are_imitated_with_the_weight_of_the_settings(tmp_path):
    asked = {"algorithm": "grpo", "reward__functions": "trainer_rewards:starts_even"}
    free = steps(run_of(tmp_path / "free", **asked), 1)[0]
    run = run_of(tmp_path / "held", **asked, loss__nll_coef=0.25)
    held = steps(run, 1)[0]
    rows = held.rows
    right = rows.mask & (rows.reward == 1)[:, None]
    assert right.any() and not right[rows.mask].all()
    torch.testing.assert_close(rows.nll_weight, torch.where(right, 0.25 / right.sum(), 0.0))
    policy = policy_at(run, held)
    logprob = token_logprob(policy, rows, run.parts.settings)
    (-0.25 * logprob[right].mean()).backward()
    assert_difference(held, free, policy)


def assert_difference(taken, other, policy):
    """Asserts that the gradients of two first steps differ by those that the policy has."""
    known = {name: p.grad for name, p in policy.parameters().items() if p.grad is not None}
    assert known.keys() == taken.gradients.keys()
    scale = max(g.abs().max() for g in taken.gradients.values())
    for name, g in known.items():
        difference = taken.gradients[name] - other.gradients[name]
        torch.testing.assert_close(difference, g, rtol=1e-3, atol=1e-5 * scale.item())
    assert max(g.abs().max() for g in known.values()) > 1e-3 * scale
