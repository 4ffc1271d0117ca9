# SPDX-License-Identifier: Apache-2.0
"""Critics: what they estimate, what their gradient touches, and that they come back from disk."""

import dataclasses

import pytest
import torch
from trainer_helpers import (
    compiled,  # noqa: F401
    ragged_rollout,
    settings,
    tiny_policy,
)

import rlkern
from rlkern.trainer import UserError
from rlkern.trainer.critic import CRITICS, make_critic
from rlkern.trainer.losses import Objective, PolicyLosses
from rlkern.trainer.models.policy import Policy, hidden_states, without_gradient
from rlkern.trainer.processes.world import World

pytestmark = pytest.mark.usefixtures("compiled")
EVERY = pytest.mark.parametrize("form", sorted(CRITICS))


def asked(form, *, share=True, **changes):
    """Returns settings that ask for a critic."""
    return settings(algorithm="ppo", critic__kind=form, memory__share_prompts=share, **changes)


def critic_of(policy, form, *, share=True, seed=None):
    """Returns a critic; with a seed its last layer is not zero."""
    critic = make_critic(asked(form, share=share), policy, None)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for p in critic.parameters().values():
            if p.shape[0] == 1:
                torch.nn.init.normal_(p, std=0.1, generator=generator)
    return critic


def with_hole(rollout):
    """Returns the rollout with its second tokens as an environment's."""
    mask = rollout.mask.clone()
    mask[:, 1] = False
    return dataclasses.replace(rollout, mask=mask)


def values_of(critic, policy, rollout, parts=1):
    """Returns the values (B, T) of all pieces, as a learner asks for them."""
    return without_gradient(
        lambda part: critic.values(policy, part), rollout, world=World(), parts=parts
    )


def value_of(critic, policy, rollout, *, share=True):
    return critic.value(policy, rollout, hidden_states(policy, rollout, share_prompts=share))


def with_targets(rollout, *, old=0.0):
    """Returns rows whose critic should have said 1 everywhere and said `old` before."""
    return dataclasses.replace(
        rollout,
        value=torch.full(rollout.mask.shape, old),
        value_target=torch.ones(rollout.mask.shape),
        value_weight=rlkern.aggregate.token_weight(rollout.mask),
    )


def loss_of(critic, policy, rollout, *, detach=False):
    hidden = hidden_states(policy, rollout, share_prompts=True)
    rows = with_targets(rollout)
    return critic.loss(policy, rows, hidden.detach() if detach else hidden, 0.0)


@EVERY
def test_the_first_estimate_is_zero_everywhere(form):
    policy = tiny_policy()
    values = values_of(critic_of(policy, form), policy, ragged_rollout(policy))
    assert values.dtype == torch.float32 and not values.any() and not values.requires_grad


@EVERY
@pytest.mark.parametrize("share", [True, False])
def test_a_value_is_of_the_state_before_its_token(form, share):
    policy = tiny_policy()
    critic, rollout = critic_of(policy, form, share=share, seed=0), ragged_rollout(policy)
    values = value_of(critic, policy, rollout, share=share)
    for t in (1, 3):
        changed = dataclasses.replace(rollout, token=rollout.token.clone())
        changed.token[:, t] = (changed.token[:, t] + 1) % 10
        moved = (value_of(critic, policy, changed, share=share) - values).abs() > 1e-6
        assert not moved[:, : t + 1].any()
        assert moved[:, t + 1][rollout.mask[:, t + 1]].all()


@EVERY
def test_values_do_not_depend_on_the_pieces_or_on_sharing_prompts(form):
    policy = tiny_policy()
    critic, rollout = critic_of(policy, form, seed=0), ragged_rollout(policy)
    whole, split = (values_of(critic, policy, rollout, parts) for parts in (1, 3))
    rows = values_of(critic_of(policy, form, share=False, seed=0), policy, rollout)
    for other in (split, rows):
        torch.testing.assert_close(whole[rollout.mask], other[rollout.mask], rtol=1e-4, atol=1e-5)
    assert whole[rollout.mask].std() > 1e-3


@EVERY
def test_two_pieces_give_the_loss_and_the_gradient_of_the_whole(form):
    policy = tiny_policy()
    critic, rollout = critic_of(policy, form, seed=0), with_hole(ragged_rollout(policy))
    weight = rlkern.aggregate.token_weight(rollout.mask)
    target = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(1))
    target[0] = torch.nan
    rows, found = dataclasses.replace(rollout, value_target=target, value_weight=weight), []
    for pieces in ([(0, 4)], [(0, 1), (1, 4)]):
        critic.module.zero_grad(), policy.model.zero_grad()
        total, metrics = 0.0, 0.0
        for first, last in pieces:
            part = rows.piece(first, last)
            hidden = hidden_states(policy, part, share_prompts=True)
            out = critic.loss(policy, part, hidden, 0.0)
            out.loss.backward()
            total, metrics = total + out.loss.item(), metrics + out.metrics
        gradient = torch.cat([p.grad.flatten() for p in critic.parameters().values()])
        found.append((total, gradient, rlkern.value_metrics_dict(metrics)))
    (loss, gradient, metrics), (other, other_gradient, other_metrics) = found
    assert loss == pytest.approx(other, rel=1e-5) and loss > 0
    assert (gradient - other_gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert metrics == pytest.approx(other_metrics, rel=1e-4)
    assert metrics["count"] == rollout.mask[1:].sum()


def test_a_head_shapes_the_policy_unless_its_hidden_states_are_detached():
    policy = tiny_policy()
    critic, rollout = critic_of(policy, "head", seed=0), ragged_rollout(policy)
    loss_of(critic, policy, rollout).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.parameters().values())
    policy.model.zero_grad(), critic.module.zero_grad()
    loss_of(critic, policy, rollout, detach=True).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.parameters().values())
    assert all(p.grad.any() for p in critic.parameters().values())


def test_a_separate_critic_leaves_the_policy_alone_and_trains_all_of_itself():
    policy = tiny_policy()
    policy.model.requires_grad_(False)
    critic, rollout = critic_of(policy, "separate", seed=0), ragged_rollout(policy)
    loss_of(critic, policy, rollout).loss.backward()
    assert all(p.grad is None for p in policy.model.parameters())
    assert all(p.grad is not None and p.grad.any() for p in critic.parameters().values())
    own = {id(p) for p in policy.model.parameters()}
    assert not own & {id(p) for p in critic.parameters().values()}


def test_a_separate_critic_begins_with_the_policys_weights_of_that_moment():
    policy = tiny_policy()
    critic, rollout = critic_of(policy, "separate", seed=0), ragged_rollout(policy)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.mul_(1.5)
    head = critic_of(policy, "head", seed=0)
    expected = values_of(head, policy, rollout)
    assert (values_of(critic, policy, rollout) - expected).abs().max() > 1e-3
    critic.begin(policy)
    torch.testing.assert_close(values_of(critic, policy, rollout), expected)


def test_a_separate_critic_begins_with_what_adapters_add_too():
    peft = pytest.importorskip("peft")
    policy = tiny_policy()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = Policy(peft.get_peft_model(policy.model, config), policy.tokenizer, policy.device)
    rollout = ragged_rollout(adapted)
    critic = critic_of(adapted, "separate", seed=0)
    expected = values_of(critic_of(adapted, "head", seed=0), adapted, rollout)
    torch.testing.assert_close(values_of(critic, adapted, rollout), expected, rtol=1e-4, atol=1e-5)
    assert not [name for name in critic.parameters() if "lora" in name]
    assert all(p.requires_grad for p in critic.parameters().values())
    assert [name for name in adapted.parameters() if "lora" in name]


def test_the_loss_is_that_of_squares_and_with_a_clip_that_of_the_larger():
    policy = tiny_policy()
    critic, rollout = critic_of(policy, "head"), ragged_rollout(policy)
    rows, found = with_targets(rollout, old=-0.5), []
    for clip in (0.0, 0.2):
        given = asked("head", critic__clip=clip)
        losses = PolicyLosses(policy, given, Objective.of(given), critic)
        found.append(losses(rows, train_policy=False).critic)
    squared, clipped = found
    assert squared.loss.item() == pytest.approx(0.5)
    # The estimate 0 is held at −0.5 + 0.2: ½·1.3².
    assert clipped.loss.item() == pytest.approx(0.845)
    assert rlkern.value_metrics_dict(clipped.metrics)["clip_fraction"] == 1.0


@EVERY
def test_a_bfloat16_policy_has_float32_values_and_a_float32_last_layer(form):
    policy = tiny_policy()
    policy.model.to(torch.bfloat16)
    critic, rollout = critic_of(policy, form, seed=0), ragged_rollout(policy)
    assert values_of(critic, policy, rollout).dtype == torch.float32
    last = [p for p in critic.parameters().values() if p.shape[0] == 1]
    assert len(last) == 2 and {p.dtype for p in last} == {torch.float32}
    loss_of(critic, policy, rollout).loss.backward()
    assert all(p.grad is not None for p in critic.parameters().values())


@EVERY
def test_a_saved_critic_comes_back_to_the_last_bit(form, tmp_path):
    policy = tiny_policy()
    critic, rollout = critic_of(policy, form, seed=0), ragged_rollout(policy)
    critic.save(tmp_path / "critic")
    back = make_critic(asked(form), policy, tmp_path)
    assert list(back.parameters()) == list(critic.parameters())
    pairs = zip(back.parameters().values(), critic.parameters().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(values_of(back, policy, rollout), values_of(critic, policy, rollout))


def test_a_critic_of_another_form_or_none_is_refused_in_a_sentence(tmp_path):
    policy = tiny_policy()
    with pytest.raises(UserError, match="cannot be read as this critic"):
        make_critic(asked("head"), policy, tmp_path)
    critic_of(policy, "head").save(tmp_path / "critic")
    with pytest.raises(UserError, match="cannot be read as this critic") as caught:
        make_critic(asked("separate"), policy, tmp_path)
    assert "\n" not in str(caught.value)
