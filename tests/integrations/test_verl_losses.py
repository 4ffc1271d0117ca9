# SPDX-License-Identifier: Apache-2.0
"""rlkern's losses and advantages under verl's names: rlkern's own numbers, and verl's where verl
has the same."""

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from verl.trainer.config import AlgoConfig  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402
from verl.workers.config.actor import PolicyLossConfig  # noqa: E402

import rlkern  # noqa: E402
from rlkern.integrations import PatchError, _target, verl, verl_losses  # noqa: E402

B, T = 6, 5
WIDE = {"clip_ratio_low": 0.1, "clip_ratio_high": 0.15}


@pytest.fixture(autouse=True, scope="module")
def registered():
    verl.register()
    verl.register()  # a second time changes nothing


def config(policy_loss=None, info=None, **options):
    made = ActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1,
        policy_loss=PolicyLossConfig(**(policy_loss or {})), **options,
    )  # fmt: skip
    made.global_batch_info.update(info or {})
    return made


def batch():
    draw = torch.Generator().manual_seed(0)
    old = -torch.rand(B, T, generator=draw) - 0.1
    logprob = (old + 0.3 * torch.randn(B, T, generator=draw)).clamp(max=-0.01)
    advantage = torch.randn(B, 1, generator=draw).expand(B, T)
    mask = torch.arange(T) < torch.tensor([5, 3, 4, 1, 5, 2])[:, None]
    weight = torch.rand(B, T, generator=draw) + 0.5
    return old, logprob.requires_grad_(), advantage, mask, weight


def of_verl(name, mode="token-mean", weighted=True, **made):
    old, logprob, advantage, mask, weight = batch()
    loss, metrics = core_algos.get_policy_loss_fn(name)(
        old_log_prob=old,
        log_prob=logprob,
        advantages=advantage,
        response_mask=mask,
        loss_agg_mode=mode,
        config=config(**made),
        rollout_is_weights=weight if weighted else None,
    )
    loss.backward()
    return loss.detach(), logprob.grad, metrics


MODES = tuple(verl_losses.AGGREGATIONS)
SAME = [
    ("dual_clip_ppo", "vanilla", WIDE),
    ("gspo_token", "gspo", WIDE),
    ("cispo", "cispo", WIDE),
    ("dppo", "dppo_tv", WIDE),
    ("dppo_kl", "dppo_kl", {"clip_ratio_low": 0.01, "clip_ratio_high": 0.02}),
    ("gpg", "gpg", {}),
    ("dro", "dro", {"policy_loss": {"dro_beta": 0.3}}),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ours,theirs,options", SAME)
def test_a_loss_that_verl_has_is_the_same(ours, theirs, options, mode):
    mine, grad, metrics = of_verl("rlkern_" + ours, mode, **options)
    other, their_grad, their_metrics = of_verl(theirs, mode, **options)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, their_grad, rtol=1e-5, atol=1e-6)
    if "actor/ppo_kl" in their_metrics:
        assert metrics["actor/ppo_kl"] == pytest.approx(their_metrics["actor/ppo_kl"], abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_gspo_is_the_same_where_the_tokens_of_an_answer_have_one_weight(mode):
    mine, other = (of_verl(x, mode, weighted=False, **WIDE) for x in ("rlkern_gspo", "gspo"))
    for x, y in zip(mine[:2], other):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_sapo_is_the_same_over_answers():  # which is the only mode that verl's has
    options = {"tau_pos": 1.2, "tau_neg": 1.4}
    mine, other = (of_verl(x, "seq-mean-token-mean", **options) for x in ("rlkern_sapo", "sapo"))
    for x, y in zip(mine[:2], other):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_geo_mean_is_the_same_over_answers():
    mine = of_verl("rlkern_gmpo", "seq-mean-token-mean", weighted=False, **WIDE)
    other = of_verl("geo_mean", weighted=False, **WIDE)
    for x, y in zip(mine[:2], other):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_global_batch_counts_as_in_verl(mode):
    info = {"dp_size": 2, "batch_num_tokens": 64, "global_batch_size": 16}
    info["loss_scale_factor"] = 7 if mode.endswith("norm") else None
    mine, other = (of_verl(x, mode, info=info) for x in ("rlkern_dual_clip_ppo", "vanilla"))
    torch.testing.assert_close(mine[0], other[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine[1], other[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name.removeprefix("rlkern_") for name in verl.losses()])
def test_each_loss_is_rlkerns_own(name):
    declared = rlkern.algorithms()[name]
    settings = verl_losses.settings(declared)
    mode = settings.pop("loss_agg_mode")
    beta = {k.split(".")[1]: settings.pop(k) for k in list(settings) if "." in k}
    mine, grad, _ = of_verl("rlkern_" + name, mode, policy_loss=beta, **settings)
    old, logprob, advantage, mask, weight = batch()
    if declared.statistic:
        args = (logprob.detach(), old, advantage, mask)
        weight = weight * rlkern.statistics.factor(*args, algorithm=name)
    out = rlkern.token_objective(
        logprob, advantage, mask, old_logprob=old, correction=weight, algorithm=name, kl_coef=0.0
    )
    out.loss.backward()
    torch.testing.assert_close(mine, out.loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, logprob.grad, rtol=1e-5, atol=1e-6)


def test_every_algorithm_is_served_or_has_a_reason():
    served = {name.removeprefix("rlkern_") for name in verl.losses()}
    assert served | set(verl.unserved()) == set(rlkern.algorithms())
    assert not served & set(verl.unserved()) and all(verl.unserved().values())
    for name in served:
        estimator = verl.configuration(name)[0].partition("=")[2]
        assert core_algos.get_adv_estimator_fn(estimator)


@pytest.mark.parametrize(
    "name,mode,made,expected",
    [
        ("maxrl", "token-mean", {"clip_ratio_high": 0.3}, "clip_ratio_high must be left at 0.2"),
        ("grpo", "token-mean", {"clip_ratio_c": 5.0}, "clip_ratio_c must be left at 3.0"),
        ("grpo", "token-mean", {"policy_loss": {"ppo_kl_coef": 0.5}}, "ppo_kl_coef must be left"),
        ("intellect2", "token-mean", {}, "use_kl_loss must be set"),
        ("grpo", "mean", {}, "loss_agg_mode must be one of"),
        ("grpo", "token-mean", {"info": {"loss_scale_factor": 3}}, "belongs to loss_agg_mode"),
        ("grpo", "token-mean", {"info": {"dp_size": 2}}, "batch_num_tokens must be given"),
    ],
)
def test_what_a_loss_does_not_take_is_refused(name, mode, made, expected):
    with pytest.raises(ValueError, match=expected):
        of_verl("rlkern_" + name, mode, **made)


UID = np.array(["b", "a", "b", "a", "b", "a"], dtype=object)
REWARD = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.3, 0.1])


def advantages(name, **more):
    mask = batch()[3].long()
    rewards = torch.zeros(B, T)
    rewards[:, 0] = REWARD
    estimate = core_algos.get_adv_estimator_fn(name)
    return estimate(token_level_rewards=rewards, response_mask=mask, index=UID, **more)


@pytest.mark.parametrize("kind", [name.removeprefix("rlkern_") for name in verl.estimators()])
def test_each_advantage_is_rlkerns_own(kind):
    found, returns = advantages("rlkern_" + kind, config=AlgoConfig())
    assert torch.equal(found, returns)
    group = torch.tensor([1, 0, 1, 0, 1, 0])
    own = rlkern.advantage.ESTIMATORS[kind](REWARD, group) if kind != "reward" else REWARD
    torch.testing.assert_close(found, own[:, None] * batch()[3])


@pytest.mark.parametrize(
    "kind,theirs,options",
    [
        ("normalized", "grpo", {"epsilon": 1e-4}),
        ("centered", "grpo", {"norm_adv_by_std_in_grpo": False}),
        ("leave_one_out", "rloo", {}),
        ("pass_at_k_normalized", "grpo_passk", {"epsilon": 1e-4, "config": AlgoConfig()}),
    ],
)
def test_an_advantage_that_verl_has_is_the_same(kind, theirs, options):
    other = advantages(theirs, **options)[0]
    torch.testing.assert_close(advantages("rlkern_" + kind)[0], other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", [{"gamma": 0.9}, {"norm_adv_by_std_in_grpo": False}])
def test_what_an_advantage_does_not_take_is_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be left at"):
        advantages("rlkern_normalized", config=AlgoConfig(**option))


def test_another_version_of_verl_is_one_sentence(monkeypatch):
    monkeypatch.setattr(_target, "installed", lambda trainer: "0.8.2")
    with pytest.raises(PatchError, match="register: verl must be verl>=0.9,<0.10.*got 0.8.2"):
        verl.register()
