# SPDX-License-Identifier: Apache-2.0
"""The smallest thing that a key changes, seen in the step that it should steer: what is sampled,
what it is worth, and what the loss is asked for."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from keys_helpers import calls, holds, norm, policy_at, run_of, step, steps
from trainer_helpers import begun, compiled  # noqa: F401

import rlkern
from rlkern.algorithms import declarations
from rlkern.trainer import UserError
from rlkern.trainer.models.policy import token_logprob
from rlkern.trainer.run import checkpoint

pytestmark = pytest.mark.usefixtures("compiled")

TINY = {"batch__prompts": 2, "rollout__group_size": 2}
LOSSES = {
    "policy_loss": "linear_policy_loss",
    "preference_loss": "preference_loss",
    "kto_loss": "kto_loss",
    "reward_model_loss": "reward_model_loss",
}
WITH_COEFFICIENTS = [name for name, known in declarations().items() if known.defaults]


def needs_of(name, folder):
    """Returns what an algorithm needs for a step of two prompts, or pairs from a folder."""
    known, asked = declarations()[name], dict(TINY)
    if "several_rewards" in known.needs:
        asked["reward__functions"] = "trainer_rewards:even_digits,trainer_rewards:right_digits"
    if known.online:
        asked.update(groups="all", batch__epochs=1, batch__minibatches=1)
        if known.kl_in_reward:
            asked["reward__kl_coef"] = 0.0
    if known.learns_from in ("pairs", "judged"):
        pair = {"chosen": "12", "rejected": "345"}
        path = folder / "pairs.jsonl"
        lines = [json.dumps({"prompt": f"{n}+1=", **pair}) for n in range(10)]
        path.write_text("\n".join(lines))
        return {"batch__prompts": 2, "pairs__source": str(path)}
    return asked


@holds("algorithm", "coefficients")
@pytest.mark.parametrize("name", WITH_COEFFICIENTS)
def test_every_coefficient_arrives_at_the_loss_of_its_algorithm(tmp_path, monkeypatch, name):
    known = declarations()[name]
    asked = {key: 0.75 * value + 0.125 for key, value in known.defaults.items()}
    seen = calls(monkeypatch, rlkern, LOSSES[known.loss])
    steps(run_of(tmp_path, algorithm=name, **needs_of(name, tmp_path), coefficients=asked), 1)
    assert seen
    for _, named, _ in seen:
        made = getattr(known, "statistic_coef", ())  # what a statistic takes is not the loss's
        assert {key: named[key] for key in asked if key not in made} == {
            key: value for key, value in asked.items() if key not in made
        }
        if known.online:
            assert named["algorithm"] == name and named["ref_logprob"] is not None


def test_the_clamps_arrive_at_the_loss_and_one_that_is_off_changes_nothing(tmp_path, monkeypatch):
    asked = {"log_ratio_min": -20.0, "log_ratio_max": "inf", "kl_max": 10.0}
    seen = calls(monkeypatch, rlkern, "linear_policy_loss")
    kl = {"kl_coef": 0.1}
    _, (free,) = step(run_of(tmp_path / "free", **TINY, coefficients=kl))
    _, (held,) = step(run_of(tmp_path / "held", **TINY, coefficients={**kl, **asked}))
    (_, _, before), (_, named, after) = seen[0], seen[-1]
    expected = {"log_ratio_min": -20.0, "log_ratio_max": float("inf"), "kl_max": 10.0}
    assert {key: named[key] for key in asked} == expected and before.loss == after.loss
    assert all(torch.equal(free.gradients[name], g) for name, g in held.gradients.items())


def grpo(log_ratio, logprob, advantage, mask):
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return (loss.where(mask, 0.0).sum(-1) / mask.sum(-1)).mean()


def dro(log_ratio, logprob, advantage, mask):
    loss = -(advantage * logprob - 0.5 * BETA * log_ratio.square())
    return loss.where(mask, 0.0).sum() / mask.sum()


def rloo(log_ratio, logprob, advantage, mask):
    ratio = log_ratio.where(mask, 0.0).sum(-1, keepdim=True).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()


def a_star_po(log_ratio, logprob, advantage, mask):
    return (BETA * log_ratio.where(mask, 0.0).sum(-1, keepdim=True) - advantage).square().mean()


BETA = 0.5
# The papers' losses once more, each with what its run is asked for beside two minibatches.
FORMULAS = {
    grpo: {},
    dro: {"coefficients": {"beta": BETA}},
    rloo: {"reward__kl_coef": 0.0},
    a_star_po: {"coefficients": {"beta": BETA}},
}


def gradient_of(formula, run, taken, start):
    """Returns (gradients of a formula by weight, largest |log ratio|); start (B, T) is what the
    ratio is to."""
    policy, rows = policy_at(run, taken), taken.rows
    weights = policy.parameters()
    with rlkern.use_backend("eager"):
        logprob = token_logprob(policy, rows, run.parts.settings)
    log_ratio = (logprob - start).where(rows.mask, 0.0)
    loss = formula(log_ratio, logprob, rows.advantage[:, None], rows.mask)
    found = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(weights, found, strict=True)), log_ratio.abs().max().item()


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f.__name__)
def test_the_ratio_is_to_what_the_paper_of_the_algorithm_says(tmp_path, formula):
    """For each step of a rollout: the policy that sampled, or the starting model."""
    run = run_of(
        tmp_path, algorithm=formula.__name__, batch__prompts=8, rollout__group_size=4,
        batch__minibatches=2, optimizer__lr=5e-3, **FORMULAS[formula],
    )  # fmt: skip
    beginning = copy.deepcopy(run.parts.policy.model)
    farthest = []
    for taken in steps(run, 2):
        rows = taken.rows
        start = rows.rollout_logprob
        if declarations()[formula.__name__].anchor == "reference":
            first = dataclasses.replace(run.parts.policy, model=beginning)
            with torch.no_grad():
                start = token_logprob(first, rows, run.parts.settings)
        expected, distance = gradient_of(formula, run, taken, start)
        size = max(g.abs().max().item() for g in expected.values())
        assert size > 1e-3
        for name, gradient in expected.items():
            assert (taken.gradients[name] - gradient).abs().max() <= 1e-3 * size, name
        farthest.append(distance)
    assert farthest[0] < 1e-4 and farthest[1] > 0.05  # the second step is not at ratio 1


def test_a_single_step_on_a_rollout_is_at_ratio_one_and_scores_nothing_for_it(tmp_path):
    run = run_of(tmp_path, **TINY)
    (taken,) = steps(run, 1)
    assert taken.rows.anchor_logprob is None and taken.rows.old_logprob is None
    scored = run_of(tmp_path / "scored", **TINY, algorithm="rloo", batch__minibatches=1)
    (taken,) = steps(scored, 1)
    assert taken.rows.anchor_logprob is None and taken.rows.old_logprob is not None


@holds("rollout.temperature", "rollout.top_k", "rollout.top_p")
@pytest.mark.parametrize("rule", [{"top_k": 5}, {"top_p": 0.7}, {}], ids=str)
def test_the_trainer_scores_and_learns_what_the_sampler_drew_by(tmp_path, monkeypatch, rule):
    asked = {f"rollout__{key}": value for key, value in rule.items()}
    seen = calls(monkeypatch, rlkern, "linear_policy_loss")
    run = run_of(
        tmp_path, **TINY, **asked, rollout__temperature=0.7, batch__epochs=2,
        coefficients={"kl_coef": 0.1},
    )  # fmt: skip
    first = steps(run, 1)[0].rows
    sampling = run.parts.sampling
    expected = (0.7, rule.get("top_k", 0), rule.get("top_p", 1.0))
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == expected
    for _, named, _ in seen:
        assert named["temperature"] == 0.7
        assert (named["keep"] is not None) == bool(rule)
    mask = first.mask
    for scores in (first.old_logprob, first.anchor_logprob, first.ref_logprob):
        torch.testing.assert_close(scores[mask], first.rollout_logprob[mask], rtol=1e-4, atol=1e-4)
    # At the first update the loss finds the ratio 1, and nothing between it and the reference.
    ratio = rlkern.metrics_dict(seen[0][2].metrics)
    assert ratio["ratio/max"] == pytest.approx(1.0, abs=1e-4)
    assert ratio["ratio/min"] == pytest.approx(1.0, abs=1e-4)
    assert ratio["kl"] == pytest.approx(0.0, abs=1e-6)


@holds("rollout.max_new_tokens")
def test_answers_and_the_length_that_sums_are_divided_by_are_those_of_the_settings(tmp_path):
    run = run_of(tmp_path, algorithm="dr_grpo", rollout__max_new_tokens=3)
    (taken,) = steps(run, 1)
    rows = taken.rows
    assert rows.token.shape[1] == 3 == rows.mask.sum(-1).max()
    weight = rows.weight[rows.mask]
    torch.testing.assert_close(weight, torch.full_like(weight, 1 / (len(rows.token) * 3)))


def test_the_loss_of_a_run_is_multiplied_by_the_correction(tmp_path):
    plain, (free,) = step(run_of(tmp_path / "plain"))
    # The sampler is the trainer, so every ratio is 1 and its bound decides.
    held, (half,) = step(run_of(tmp_path / "held", correction={"kind": "truncate", "high": 0.5}))
    assert held["correction"] == pytest.approx(0.5)
    assert norm(half) == pytest.approx(0.5 * norm(free), rel=1e-4)


@holds("loss.overlong_filter")
def test_cut_off_answers_have_no_weight_in_the_loss_and_keep_their_place_in_the_group(tmp_path):
    asked = {"rollout__max_new_tokens": 2, "rollout__group_size": 8}
    (every,) = steps(run_of(tmp_path / "every", **asked), 1)
    run = run_of(tmp_path / "filtered", **asked, loss__overlong_filter=True)
    (kept,) = steps(run, 1)
    stop = torch.isin(every.rows.token, run.parts.sampling.stop)
    ended = (stop & every.rows.mask).any(-1)
    assert 0 < ended.sum() < len(ended)
    assert torch.equal(kept.rows.mask, every.rows.mask & ended[:, None])
    assert torch.equal(kept.rows.weight > 0, kept.rows.mask)
    assert torch.equal(kept.rows.advantage, every.rows.advantage)


@holds("loss.path", "loss.compare")
def test_each_path_is_the_function_that_it_names(tmp_path, monkeypatch):
    linear = calls(monkeypatch, rlkern, "linear_policy_loss")
    whole = calls(monkeypatch, rlkern, "policy_loss")
    for path, found in (("linear", (1, 0)), ("fused", (0, 1)), ("eager", (0, 1))):
        linear.clear(), whole.clear()
        steps(run_of(tmp_path / path, **TINY, loss__path=path), 1)
        assert (len(linear), len(whole)) == found
        assert all(named.get("inplace", False) is (path == "fused") for _, named, _ in whole)
    linear.clear(), whole.clear()
    values, _ = step(run_of(tmp_path / "compared", **TINY, loss__compare="eager"))
    assert (len(linear), len(whole)) == (2, 1) and values["compare/loss_difference"] < 1e-5


@holds("loss.kind")
def test_the_kind_of_preference_loss_is_the_one_asked_for(tmp_path, monkeypatch):
    seen = calls(monkeypatch, rlkern, "preference_loss")
    steps(run_of(tmp_path, algorithm="dpo", **needs_of("dpo", tmp_path), loss__kind="hinge"), 1)
    assert {named["kind"] for _, named, _ in seen} == {"hinge"}


def test_a_resumed_run_has_the_starting_model_as_its_reference(tmp_path):
    run = run_of(tmp_path, **TINY, optimizer__lr=1e-2, coefficients={"kl_coef": 0.1})
    start = copy.deepcopy(run.parts.policy.model.state_dict())
    steps(run, 1)
    saved = checkpoint.save(tmp_path, run.parts, run.updater)
    again = begun(run.parts.settings, tmp_path, saved)
    for parts in (run.parts, again.parts):
        kept, trained = parts.reference.model.state_dict(), parts.policy.model.state_dict()
        assert all(torch.equal(x, kept[name]) for name, x in start.items())
        assert not all(torch.equal(x, trained[name]) for name, x in start.items())
    (taken,), (resumed,) = steps(run, 1), steps(again, 1)
    assert torch.equal(taken.rows.ref_logprob, resumed.rows.ref_logprob)
    for name, gradient in taken.gradients.items():
        assert torch.equal(gradient, resumed.gradients[name]), name


def test_a_resume_without_the_starting_model_does_not_take_another_for_it(tmp_path):
    run = run_of(tmp_path, **TINY, coefficients={"kl_coef": 0.1})
    steps(run, 1)
    saved = checkpoint.save(tmp_path, run.parts, run.updater)
    shutil.rmtree(tmp_path / "reference")
    with pytest.raises(UserError, match="reference"):
        begun(run.parts.settings, tmp_path, saved)
