# SPDX-License-Identifier: Apache-2.0
"""What an update of an off-policy actor–critic is made of, and what an evaluation leaves alone."""

import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from rlkern.control import algorithms, of  # noqa: E402
from rlkern.control.continuous import ContinuousActorCritic  # noqa: E402
from rlkern.control.environments import Environments  # noqa: E402
from rlkern.control.evaluate import evaluate  # noqa: E402

CONTINUOUS = [
    each for each in algorithms().values() if issubclass(each.learner, ContinuousActorCritic)
]


def next_joint(algorithm, observation, following):
    """Returns what the critics' target is made of, for a memory of one repeated transition."""
    settings = of(algorithm=algorithm.name, env="Pendulum-v1", **algorithm.quick)
    torch.manual_seed(0)
    learner = algorithm.learner(settings, Environments(settings.env, {}, 1, 0))
    seen = []
    fit = learner.critic.fit
    learner.critic.fit = lambda rows, joint, *more: seen.append(joint) or fit(rows, joint, *more)
    for _ in range(4):
        learner.replay.add(
            torch.full((1, 3), observation).numpy(), torch.zeros(1, 1).numpy(),
            torch.full((1, 3), following).numpy(), torch.ones(1).numpy(),
            torch.zeros(1).bool().numpy(),
        )  # fmt: skip
    torch.manual_seed(1)
    learner.update()
    return seen[0]


@pytest.mark.parametrize("algorithm", CONTINUOUS, ids=lambda each: each.name)
def test_a_target_is_made_of_the_next_state_and_of_what_is_done_there(algorithm):
    one, same = (next_joint(algorithm, seen, 0.5) for seen in (0.1, 0.9))
    assert torch.equal(one, same) and one[:, :3].eq(0.5).all()
    assert not torch.equal(one[:, 3:], next_joint(algorithm, 0.1, -0.5)[:, 3:])


def test_an_evaluation_changes_no_random_number_of_the_run():
    settings = of(algorithm="q_learning", env="CliffWalking-v1", eval_length=3)
    environments = Environments(settings.env, {}, 1, 0)
    learner = algorithms()["q_learning"].learner(settings, environments)
    act = learner.act

    def drawing(observation):
        torch.rand(1)
        learner.rng.random()
        return act(observation)

    learner.act = drawing
    before, own = torch.get_rng_state(), learner.rng.bit_generator.state
    evaluate(learner, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert own == learner.rng.bit_generator.state


@pytest.mark.parametrize("algorithm", CONTINUOUS, ids=lambda each: each.name)
def test_a_learner_that_is_loaded_holds_what_was_saved(algorithm):
    settings = of(algorithm=algorithm.name, env="Pendulum-v1", **algorithm.quick)
    learners = [
        algorithm.learner(settings, Environments(settings.env, {}, 1, seed)) for seed in (0, 1)
    ]
    steps = settings.learning_starts + 3 * settings.train_every
    while learners[0].environments.steps < steps:
        learners[0].iterate()
    saved = learners[0].state()
    learners[1].load(saved)
    torch.testing.assert_close(learners[1].state(), saved, rtol=0, atol=0)
    assert saved.get("made", 1) > 0  # by which TD3 tells the updates of its actor


@pytest.mark.parametrize("algorithm", CONTINUOUS, ids=lambda each: each.name)
def test_an_update_is_measured(algorithm):
    settings = of(algorithm=algorithm.name, env="Pendulum-v1", seed=0, **algorithm.quick)
    torch.manual_seed(0)
    learner = algorithm.learner(settings, Environments(settings.env, {}, 1, 0))
    found = [learner.iterate() for _ in range(settings.learning_starts + 32)]
    for key in ("losses/td_loss", "losses/policy_loss", "losses/q_values"):
        assert len({each[key] for each in found if key in each}) > 2, key


@pytest.mark.parametrize("algorithm", CONTINUOUS, ids=lambda each: each.name)
def test_an_evaluation_acts_in_the_middle_of_what_noise_makes(algorithm):
    values = {"noise": 0.3} if "noise" in algorithm.settings.model_fields else {}
    settings = of(algorithm=algorithm.name, env="Pendulum-v1", **{**algorithm.quick, **values})
    torch.manual_seed(0)
    learner = algorithm.learner(settings, Environments(settings.env, {}, 1, 0))
    seen = torch.linspace(-1, 1, 24).reshape(8, 3)
    with torch.no_grad():
        outputs = learner.actor(seen)
        low, high = (learner.noisy(outputs, torch.full((8, 1), side)) for side in (-0.1, 0.1))
    low, high = (learner.for_environment(each.numpy()) for each in (low, high))
    action = learner.act(seen.numpy())
    assert (low < action).all() and (action < high).all()


@pytest.mark.parametrize("algorithm", CONTINUOUS, ids=lambda each: each.name)
def test_each_critic_has_the_gradient_of_its_own_loss(algorithm):
    """Whatever their number: the sum of what each is off by, not the mean."""
    settings = of(algorithm=algorithm.name, env="Pendulum-v1", **algorithm.quick)
    torch.manual_seed(0)
    learner = algorithm.learner(settings, Environments(settings.env, {}, 1, 0))
    for _ in range(8):
        learner.replay.add(*(torch.randn(1, n).numpy() for n in (3, 1, 3)),
                           torch.randn(1).numpy(), torch.zeros(1).bool().numpy())  # fmt: skip
    rows, critic = learner.replay.sample(learner.rng, 8), learner.critic
    with torch.no_grad():
        later = torch.stack([each(rows.joint) for each in critic.copies]).amin(0)
    target = rows.reward + 0.9 * later[:, 0]
    losses = [(each(rows.joint)[:, 0] - target).square().mean() for each in critic.online]
    expected = torch.autograd.grad(0.5 * sum(losses), critic.weights.parameters)
    critic.fit(rows, rows.joint, None, 0.9)
    found = [each.grad for each in critic.weights.parameters]
    torch.testing.assert_close(found, list(expected))
