# SPDX-License-Identifier: Apache-2.0
"""Arguments that can be given in more than one form mean the same in each."""

import dataclasses
import math

import pytest
import torch

import rlkern
from rlkern.aggregate import token_weight
from rlkern.testing.cases import Case, make_batch


def test_an_algorithm_is_taken_wherever_its_name_is():
    batch = make_batch(Case("declared", B=2, T=3, V=5), torch.float64)
    rows = {"old_logprob": batch.old_logprob, "ref_logprob": batch.ref_logprob}
    given = (batch.advantage, batch.mask)
    grpo = rlkern.algorithms()["grpo"]
    head = torch.eye(5, dtype=torch.float64)
    calls = {
        "policy_loss": lambda **o: rlkern.policy_loss(batch.logits, batch.token, *given, **o),
        "linear": lambda **o: rlkern.linear_policy_loss(
            batch.logits, head, batch.token, *given, **o
        ),
        "token_objective": lambda **o: rlkern.token_objective(batch.ref_logprob, *given, **o),
    }
    changed = dataclasses.replace(grpo, aggregation="token_mean")
    for call in calls.values():
        by_name = call(**rows, algorithm="grpo").loss
        assert call(**rows, algorithm=grpo).loss.equal(by_name)
        weight = token_weight(batch.mask, "token_mean")
        expected = call(**rows, algorithm="grpo", weight=weight.double()).loss
        torch.testing.assert_close(
            call(**rows, algorithm=changed).loss, expected, rtol=1e-6, atol=0
        )
        assert not expected.isclose(by_name)
        # Another gate under the same name is another loss.
        other = call(**rows, algorithm=dataclasses.replace(grpo, gate="cispo")).loss
        assert not other.isclose(by_name)


@pytest.mark.parametrize("name", ("advantage", "correction"))
def test_a_number_per_sequence_is_that_of_each_of_its_tokens(name):
    batch = make_batch(Case("per sequence", B=3, T=4, V=5), torch.float64)
    given = {"advantage": batch.advantage, "correction": torch.ones_like(batch.advantage)}
    one = torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64)

    def loss(x, flat=False):
        rows = {**given, name: x, "old_logprob": batch.old_logprob, "mask": batch.mask}
        bounds = {}
        if flat:
            rows = {k: v.flatten(0, 1) if v.shape[1:] == (4,) else v for k, v in rows.items()}
            bounds = {"cu_seqlens": torch.tensor([0, 4, 8, 12])}
        score = batch.ref_logprob.flatten() if flat else batch.ref_logprob
        return rlkern.token_objective(score, **rows, **bounds, algorithm="grpo").loss

    expected = loss(one[:, None].expand(3, 4))
    for flat in (False, True):
        for shape in ((3,), (3, 1)):
            torch.testing.assert_close(loss(one.reshape(shape), flat), expected)


@pytest.mark.parametrize("kind", ("truncate", "mask", "sequence_truncate", "sequence_mask"))
def test_no_upper_bound_can_be_said_as_none_or_infinity(kind):
    old, rollout = torch.tensor([[0.0, -1.0]]).double(), torch.tensor([[-9.0, -2.0]]).double()
    mask = torch.ones(1, 2).bool()
    d = old - rollout
    expected = (d if "sequence" not in kind else d.sum().expand(1, 2)).exp()
    for high in (None, math.inf):
        factor = rlkern.rollout_correction(old, rollout, mask, kind=kind, high=high)
        torch.testing.assert_close(factor, expected)
    with pytest.raises(ValueError, match="rollout_correction: high must be a number, got nan"):
        rlkern.rollout_correction(old, rollout, mask, kind=kind, high=math.nan)


def test_the_advantage_of_an_answer_is_enough_for_the_sequence_mask():
    old, rollout = torch.full((2, 3), -2.0), torch.full((2, 3), -1.0)
    mask, advantage = torch.ones(2, 3).bool(), torch.tensor([1.0, -1.0])
    kept = rlkern.off_policy_sequence_mask(old, rollout, advantage, mask)
    assert kept.tolist() == [[True] * 3, [False] * 3]
