# SPDX-License-Identifier: Apache-2.0
"""What a learner carries from update to update: traces, target networks, a temperature.

A learner is asked for by what it has; nothing here names an algorithm.
"""

from functools import cache

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from rlkern.control import algorithms, of  # noqa: E402
from rlkern.control.checkpoint import flattened  # noqa: E402
from rlkern.control.environments import Environments  # noqa: E402


def learner_of(name: str, env: str, **values):
    """Returns a learner in one copy of an environment, None if it cannot act there."""
    algorithm = algorithms()[name]
    own = {key: value for key, value in values.items() if key in algorithm.settings.model_fields}
    settings = of(algorithm=name, env=env, **{**algorithm.quick, "num_envs": 1, **own})
    torch.manual_seed(0)
    environments = Environments(settings.env, {}, 1, 0)
    try:
        return algorithm.learner(settings, environments)
    except AssertionError:
        return None


def having(attribute: str, env: str) -> list[str]:
    """Returns the algorithms whose learners have an attribute."""
    return [name for name in algorithms() if hasattr(learner_of(name, env), attribute)]


@pytest.mark.parametrize("name", having("trace", "RandomWalk5-v0"))
def test_an_episode_begins_without_the_traces_of_the_last(name):
    learner = learner_of(name, "RandomWalk5-v0")
    learner.iterate()
    assert learner.trace.any()
    while not learner.environments.finished:
        learner.iterate()
    assert not learner.trace.any()


@pytest.mark.parametrize("name", having("target_weights", "CartPole-v1"))
def test_a_target_network_is_refreshed_when_it_is_due_and_only_then(name):
    learner = learner_of(
        name, "CartPole-v1", target_every=10, train_every=1, learning_starts=4, updates=1
    )

    def same() -> bool:
        return torch.equal(learner.target_weights.vector, learner.weights.vector)

    found = []
    for _ in range(20):
        learner.iterate()
        found.append(same())
    assert [step + 1 for step, each in enumerate(found) if each] == [1, 2, 3, 10, 20]


def filled(name: str, **values):
    """Returns a learner of Pendulum with a few transitions in its memory."""
    learner = learner_of(name, "Pendulum-v1", hidden=(8,), batch_size=16, **values)
    for _ in range(32):
        seen = learner.environments.observation
        action = learner.explore(seen, random=True)
        found = learner.environments.step(learner.for_environment(action))
        learner.replay.add(seen, action, found.next, found.reward, found.terminated)
    return learner


def vectors(learner) -> dict[str, torch.Tensor]:
    """Returns copies of the parameters: of the actor and the critics, and of what follows them."""
    found = {"critic": learner.critic.weights, "critic's": learner.critic.target}
    found["actor"] = learner.actor_weights
    if hasattr(learner, "target_actor_weights"):
        found["actor's"] = learner.target_actor_weights
    return {key: each.vector.detach().clone() for key, each in found.items()}


@pytest.mark.parametrize("name", having("actor_weights", "Pendulum-v1"))
def test_what_follows_a_network_takes_its_share_of_it_at_every_update_that_is_due(name):
    learner = filled(name, tau=0.25)
    every = getattr(learner.settings, "policy_every", 1)
    for made in range(1, 2 * every + 1):
        before = vectors(learner)
        learner.update()
        after = vectors(learner)
        due = made % every == 0
        assert not torch.equal(before["critic"], after["critic"])
        assert torch.equal(before["actor"], after["actor"]) is not due
        for key in {"critic's", "actor's"} & after.keys():
            wanted = torch.lerp(before[key], after[key.removesuffix("'s")], 0.25)
            torch.testing.assert_close(after[key], wanted if due else before[key])
            assert torch.equal(before[key], after[key]) is not due


@pytest.mark.parametrize("name", having("log_alpha", "Pendulum-v1"))
@pytest.mark.parametrize("target, sign", [(-50.0, -1.0), (50.0, 1.0)])
def test_a_temperature_moves_to_where_its_entropy_is_unless_it_is_kept(name, target, sign):
    moved = filled(name, target_entropy=target)
    kept = filled(name, target_entropy=target, learn_alpha=False)
    for learner in (moved, kept):
        learner.update()
    # The first step of Adam is as long as its rate.
    assert moved.log_alpha.item() == pytest.approx(sign * moved.settings.learning_rate, rel=1e-3)
    assert kept.log_alpha.item() == 0.0


@pytest.mark.parametrize(
    "name", [each for each, a in algorithms().items() if "target_noise" in a.settings.model_fields]
)
def test_a_smoothed_target_is_as_far_from_its_action_as_the_clip_and_in_the_bounds(name):
    learner = filled(name, target_noise=100.0, target_noise_clip=0.3)
    rows = learner.replay.sample(np.random.default_rng(0), 64)
    action = learner.next_action(rows).detach()
    middle = torch.tanh(learner.target_actor(rows.next)).detach()
    assert action.abs().max() <= 1.0
    expected = torch.stack([(middle + side).clamp(-1.0, 1.0) for side in (-0.3, 0.3)])
    gap = (action - expected).abs().amin(0)
    assert (gap < 1e-5).float().mean() > 0.9  # noise of 100 is seldom shorter than 0.3


def fields(key: str) -> list[str]:
    """Returns the algorithms with a setting."""
    return [name for name, each in algorithms().items() if key in each.settings.model_fields]


@pytest.mark.parametrize("name", fields("anneal"))
@pytest.mark.parametrize("anneal, share", [(True, 0.25), (False, 1.0)])
def test_a_learning_rate_falls_to_zero_at_the_last_step_if_it_is_to(name, anneal, share):
    learner = learner_of(name, "CartPole-v1", steps=1_000_000, anneal=anneal, rollout=32)
    learner.environments.steps = 750_000
    learner.iterate()
    rate = learner.weights.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(share * learner.settings.learning_rate, rel=1e-3)


@pytest.mark.parametrize("name", fields("clip"))
def test_a_clip_holds_the_steps_that_went_further(name):
    def share(clip: float) -> float:
        learner = learner_of(name, "CartPole-v1", clip=clip, rollout=64, learning_rate=0.01)
        return learner.iterate()["losses/clipfrac"]

    assert share(1e-6) > 0.2 and share(100.0) == 0.0


@pytest.mark.parametrize("name", fields("exploration_share"))
def test_exploration_has_fallen_after_its_share_of_the_run(name):
    learner = learner_of(
        name, "CartPole-v1", steps=1000, exploration_share=0.5, epsilon=1.0, epsilon_end=0.2
    )
    found = []
    for step in (0, 250, 500, 1000):
        learner.environments.steps = step
        found.append(learner.epsilon)
    assert found == pytest.approx([1.0, 0.6, 0.2, 0.2])


@pytest.mark.parametrize("name", fields("line_search"))
@pytest.mark.parametrize("seed", range(5))
def test_a_line_search_takes_no_step_that_makes_the_policy_worse(name, seed):
    learner = learner_of(name, "CartPole-v1", target_kl=1e4, rollout=64)
    torch.manual_seed(seed)
    batch, start = learner.collect(), learner.policy_weights.vector.detach().clone()
    advantage = torch.randn(64)

    def logprob() -> torch.Tensor:
        return learner.policy.logprob(learner.policy.outputs(batch.observation), batch.action)

    before = logprob().detach()
    learner.constrained_step(batch, advantage)
    better = ((logprob() - before).exp() * advantage).mean() > advantage.mean()
    assert better or torch.equal(start, learner.policy_weights.vector)


# Values that none of the algorithms has from the start.
ALTERED = {
    "learning_rate": 0.037, "discount": 0.61, "gae_lambda": 0.43, "entropy_coef": 0.83,
    "value_coef": 0.29, "max_grad_norm": 0.013, "tau": 0.17, "noise": 0.91,
    "noise_correlation": 0.57, "target_noise": 0.77, "target_noise_clip": 0.019,
    "trace_decay": 0.23, "n": 2, "cg_damping": 0.7, "cg_iterations": 1, "target_kl": 0.0003,
    "epochs": 3, "updates": 3, "train_every": 3, "policy_every": 3, "epsilon": 0.67,
    "epsilon_end": 0.93, "episodes": 2, "alpha": 0.19, "initial_value": 0.31, "batch_size": 16,
    "target_every": 7, "hidden": (5,), "rollout": 24, "learning_rate_end": 0.001,
}  # fmt: skip
SMALL = {"learning_starts": 8, "target_every": 10, "batch_size": 32, "rollout": 32, "steps": 400}
# Monte Carlo's means need whole episodes, and hold nothing of an initial value after them.
READ = [
    (name, key)
    for name, each in algorithms().items()
    for key in sorted(ALTERED)
    if each.repeats and key in each.settings.model_fields
    if each.settings.model_fields["learning_rate"].default is not None
]


@cache
def learnt(name: str, **values) -> dict:
    """Returns the tensors that a learner holds after 96 steps."""
    values = {**SMALL, **values}
    places = ("CliffWalking-v1", "CartPole-v1", "Pendulum-v1")
    if algorithms()[name].learns == "prediction":
        places = ("RandomWalk5-v0",)
    made = (learner_of(name, env, **values) for env in places)
    learner = next(each for each in made if each is not None)
    while learner.environments.steps < 96:
        learner.iterate()
    found: dict = {}
    flattened(learner.state(), found)
    return found


@pytest.mark.parametrize("name, key", READ)
def test_no_setting_is_read_in_vain(name, key):
    one, other = learnt(name), learnt(name, **{key: ALTERED[key]})
    assert one.keys() != other.keys() or any(
        one[each].shape != other[each].shape or not torch.equal(one[each], other[each])
        for each in one
    )
