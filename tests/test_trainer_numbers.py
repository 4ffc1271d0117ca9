# SPDX-License-Identifier: Apache-2.0
"""Numbers that teach nothing: logits that are not finite, and steps that rounding swallows."""

import math

import pytest
import torch
from keys_helpers import run_of, step
from trainer_helpers import compiled, ragged_prompts, small, tiny_policy  # noqa: F401

from rlkern.runs.errors import NotFinite
from rlkern.trainer import UserError, build, train
from rlkern.trainer.rollout.sampler import Sampling, sample
from rlkern.trainer.rollout.text import stop_tokens

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.mark.parametrize("rule", ({}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}))
@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_logits_that_are_not_finite_are_a_sentence_that_names_the_weight(rule, value):
    policy = tiny_policy()
    sampling = Sampling(4, stop_tokens(policy, ""), **rule)
    uniform = None if sampling.temperature == 0 else torch.full((4, 4), 0.5).double()
    name = "model.layers.1.mlp.up_proj.weight"
    policy.model.get_parameter(name).data[3, 5] = value
    sentence = f"logits of token 1 of an answer are not finite: the weight {name} holds"
    with pytest.raises(NotFinite, match=sentence):
        sample(policy, ragged_prompts(policy), sampling, group_size=1, uniform=uniform)


def test_a_head_that_is_not_finite_is_named_before_anything_is_sampled():
    policy = tiny_policy()
    policy.model.get_output_embeddings().weight.data[3, 5] = math.nan
    with pytest.raises(
        UserError, match=r"^fused_head: Llama\w+: its logits must be finite .* holds some"
    ):
        sample(
            policy,
            ragged_prompts(policy),
            Sampling(4, stop_tokens(policy, "")).greedy(),
            group_size=1,
            uniform=None,
        )


def test_finite_weights_that_overflow_are_said_to():
    policy = tiny_policy()
    policy.model.model.norm.weight.data.fill_(3e38)
    sampling = Sampling(4, stop_tokens(policy, "")).greedy()
    with pytest.raises(NotFinite, match="all weights are finite, so its forward pass overflows"):
        sample(policy, ragged_prompts(policy), sampling, group_size=1, uniform=None)


def test_a_run_whose_weights_break_says_after_which_step_and_how_to_go_on(tmp_path, monkeypatch):
    original, taken = build.Online.step, []

    def breaks(learner, updater, warn):
        taken.append(original(learner, updater, warn))
        if len(taken) == 2:
            learner.parts.policy.model.lm_head.weight.data[0, 0] = math.nan
        return taken[-1]

    monkeypatch.setattr(build.Online, "step", breaks)
    config = small(tmp_path, name="run", sft=None, eval__every=0, output__save_every=1)
    sentence = "after step 2: the model's logits .* are not finite: the weight .* --resume .*run$"
    with pytest.raises(UserError, match=sentence):
        train(config)


@pytest.mark.parametrize("lr", (1e-7, 1e-1))
def test_bfloat16_weights_that_a_step_does_not_move_are_counted_and_said(tmp_path, lr):
    run, said = run_of(tmp_path, dtype="bfloat16", optimizer__lr=lr), []
    before = {name: p.detach().clone() for name, p in run.parts.parameters().items()}
    values, _ = run.learner.step(run.updater, said.append)
    state = run.updater.optimizer.state
    same = asked = 0
    for name, p in run.parts.parameters().items():
        moving = state[p]["exp_avg"] != 0
        asked += moving.sum().item()
        same += (moving & (p == before[name])).sum().item()
    # Of large tensors only a sample is looked at.
    assert values["unchanged_weights"] == pytest.approx(same / asked, abs=0.02)
    warned = any("did not change" in one and "--dtype mixed" in one for one in said)
    assert warned is (lr == 1e-7) and (values["unchanged_weights"] > 0.9) is warned


@pytest.mark.parametrize("dtype", ("float32", "mixed"))
def test_float32_weights_are_not_looked_at(tmp_path, dtype):
    values, _ = step(run_of(tmp_path, dtype=dtype))
    assert "unchanged_weights" not in values
