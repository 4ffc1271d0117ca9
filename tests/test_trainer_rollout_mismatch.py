# SPDX-License-Identifier: Apache-2.0
"""How far the sampler is from the trainer, in the loss and in the log."""

import dataclasses
import json
import math

import pytest
import torch
from trainer_helpers import compiled, small  # noqa: F401

import rlkern
from rlkern.trainer.online.shaping import correction, mismatch_metrics
from rlkern.trainer.rows import Rows

pytestmark = pytest.mark.usefixtures("compiled")
OLD = torch.tensor([[0.9, 0.2], [0.1, 0.7]]).log()
SAMPLED = torch.tensor([[0.3, 0.4], [0.1, 0.1]]).log()  # ratios 3, 1/2; 1, masked
MASK = torch.tensor([[True, True], [True, False]])


def rows(old=OLD):
    return Rows(
        prompt=torch.zeros(2, 1, dtype=torch.int64),
        prompt_mask=torch.ones(2, 1, dtype=torch.bool),
        token=torch.zeros(2, 2, dtype=torch.int64),
        mask=MASK,
        present=MASK,
        rollout_logprob=SAMPLED,
        old_logprob=old,
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"kind": "truncate"}, [[2.0, 0.5], [1.0, 0.0]]),
        ({"kind": "mask", "low": 0.4}, [[0.0, 0.5], [1.0, 0.0]]),
        ({"kind": "mask", "low": 0.6}, [[0.0, 0.0], [1.0, 0.0]]),
        ({"kind": "sequence_truncate"}, [[1.5, 1.5], [1.0, 0.0]]),
        ({"kind": "truncate", "low": 0.6}, [[2.0, 0.6], [1.0, 0.0]]),
        ({"kind": "truncate", "high": math.inf}, [[3.0, 0.5], [1.0, 0.0]]),
        # |π_old − μ| is 0.6 and 0.2; the KL of two outcomes 1.03 and 0.10
        ({"kind": "total_variation_mask", "high": 0.4}, [[0.0, 0.5], [1.0, 0.0]]),
        ({"kind": "total_variation_mask", "high": 0.1}, [[0.0, 0.0], [1.0, 0.0]]),
        ({"kind": "binary_kl_mask", "high": 0.5}, [[0.0, 0.5], [1.0, 0.0]]),
        ({"kind": "binary_kl_mask", "high": 1.2}, [[3.0, 0.5], [1.0, 0.0]]),
    ],
)
def test_the_factor_is_the_bounded_ratio(tmp_path, asked, expected):
    config = small(tmp_path, correction={"high": 2.0, **asked})
    torch.testing.assert_close(correction(config, rows()), torch.tensor(expected))


@pytest.mark.parametrize("kind", ["truncate", "sequence_truncate"])
def test_a_ratio_is_capped_at_2_unless_a_cap_is_given(tmp_path, kind):
    """As in TRL, vllm_importance_sampling_cap, and in verl, rollout_is_threshold."""
    assert small(tmp_path, correction={"kind": kind}).correction.high == 2.0


def test_nothing_is_corrected_unless_it_was_asked_for(tmp_path):
    assert correction(small(tmp_path), rows()) is None


def test_the_metrics_count_the_tokens_of_the_mask_alone(tmp_path):
    factor = correction(small(tmp_path, correction__kind="truncate"), rows())
    found = mismatch_metrics(rows(), factor)
    differences = torch.tensor([3.0, 2.0, 1.0]).log()
    name = "sampling/sampling_logp_difference"
    assert found[f"{name}/mean"] == pytest.approx(differences.mean().item(), rel=1e-5)
    assert found[f"{name}/max"] == pytest.approx(differences.max().item(), rel=1e-5)
    name = "sampling/importance_sampling_ratio"
    ratios = [found[f"{name}/{reduced}"] for reduced in ("min", "mean", "max")]
    assert ratios == pytest.approx([0.5, 3.5 / 3, 2.0])
    distance = rlkern.off_policy_metrics(OLD, SAMPLED, MASK)
    assert distance["chi2_token"].item() == pytest.approx((9 + 1 / 4 + 1) / 3 - 1, rel=1e-5)
    logged = {k.removeprefix("rollout_corr/"): x for k, x in found.items() if "rollout_corr" in k}
    assert logged == {k: x.item() for k, x in distance.items()}


def test_a_token_that_the_sampler_did_not_score_is_counted_and_not_corrected(tmp_path):
    given = dataclasses.replace(rows(), rollout_logprob=SAMPLED.clone())
    assert mismatch_metrics(given)["sampling/unknown_logprobs"] == 0
    given.rollout_logprob[0, 0] = math.nan
    factor = correction(small(tmp_path, correction__kind="truncate"), given)
    torch.testing.assert_close(factor, torch.tensor([[1.0, 0.5], [1.0, 0.0]]))
    found = mismatch_metrics(given, factor)
    assert found["sampling/unknown_logprobs"] == 1
    name = "sampling/sampling_logp_difference"
    assert found[f"{name}/max"] == pytest.approx(math.log(2), rel=1e-5)
    assert found[f"{name}/mean"] == pytest.approx(math.log(2) / 2, rel=1e-5)
    assert found["sampling/importance_sampling_ratio/max"] == 1
    given.rollout_logprob[:] = math.nan
    found = mismatch_metrics(given)
    assert found == {"sampling/unknown_logprobs": 3}


def test_what_was_not_scored_has_no_metrics():
    assert mismatch_metrics(rows(old=None)) == {}


def test_a_corrected_run_logs_ratios_of_one_where_the_model_samples_for_itself(tmp_path):
    from rlkern.trainer.loop import train

    rule = {"rollout__top_k": 6, "rollout__top_p": 0.9}
    config = small(tmp_path, correction__kind="truncate", **rule, steps=2, name="run")
    train(config)
    text = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text()
    key = "sampling/importance_sampling_ratio"
    lines = [line for line in map(json.loads, text.splitlines()) if f"{key}/min" in line]
    assert len(lines) == 2
    for line in lines:
        assert 0.999 < line[f"{key}/min"] <= line[f"{key}/mean"] <= line[f"{key}/max"] < 1.001
