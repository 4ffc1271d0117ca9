# SPDX-License-Identifier: Apache-2.0
"""Arguments that can be given in more than one form mean the same in each."""

import dataclasses

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
