# SPDX-License-Identifier: Apache-2.0
"""The classic algorithms that learn with networks, and the parts that they share."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.distributions import transforms as bijections
from torch.distributions.transformed_distribution import TransformedDistribution

gymnasium = pytest.importorskip("gymnasium")


from rlkern.control import algorithms, of  # noqa: E402
from rlkern.control.declaration import BOX, DISCRETE  # noqa: E402
from rlkern.control.environments import Environments  # noqa: E402
from rlkern.control.evaluate import evaluate  # noqa: E402
from rlkern.control.networks import Encoder, Mlp, Weights  # noqa: E402
from rlkern.control.off_policy import OffPolicy  # noqa: E402
from rlkern.control.policies import policy_for  # noqa: E402
from rlkern.control.replay import Replay  # noqa: E402
from rlkern.control.rollout import collect, steps_of_each  # noqa: E402
from rlkern.control.squashed import squashed  # noqa: E402

CPU = torch.device("cpu")
DEEP = [each for each in algorithms().values() if each.observations == BOX]
KINDS = ("CartPole-v1", "Pendulum-v1")


def made(algorithm, env: str, **values):
    """Returns a learner in its environments."""
    settings = of(algorithm=algorithm.name, env=env, **{**algorithm.quick, **values})
    torch.manual_seed(0)
    environments = Environments(env, settings.env_options, settings.num_envs, 0)
    return algorithm.learner(settings, environments)


def options(algorithm) -> dict:
    return {"env_options": {"continuous": DISCRETE not in algorithm.actions}}


@pytest.mark.parametrize("algorithm", DEEP, ids=lambda each: each.name)
def test_an_algorithm_comes_half_way_from_its_first_policy_to_the_best(algorithm):
    # The module's name lets the processes of an algorithm find the environment, too.
    learner = made(algorithm, "control_helpers:Aim-v0", learning_rate=3e-3, **options(algorithm))
    before = evaluate(learner, 20)["eval/return"]
    while learner.environments.steps < 2000:
        learner.iterate()
    learner.close()
    after = evaluate(learner, 20)["eval/return"]
    assert before < 8.0 and after > before + 0.5 * (10.0 - before)


def rollout(env: str, copies: int, steps: int):
    """Returns what a policy did, with V(s) of an observation s that is a single number: s."""
    environments = Environments(env, {}, copies, 0)
    policy = policy_for(environments.actions, [1])
    batch = collect(environments, policy, Encoder(environments, CPU), steps_of_each(steps))
    return batch, torch.cat([batch.observation, batch.after]).squeeze(1)


def test_nothing_follows_a_termination():
    batch, value = rollout("Countdown-v0", 2, 3)
    out = batch.estimates(value, discount=0.5, gae_lambda=1.0)
    assert batch.cu_seqlens.tolist() == [0, 3, 6] and batch.terminated.tolist() == [True, True]
    assert out.target.tolist() == [1.75, 1.5, 1.0] * 2
    assert batch.returns(0.5).tolist() == [1.75, 1.5, 1.0] * 2


def test_a_truncation_is_followed_by_the_value_of_the_true_last_observation():
    batch, value = rollout("Truncated-v0", 2, 2)
    out = batch.estimates(value, discount=0.5, gae_lambda=1.0)
    assert batch.after.tolist() == [[2.0], [2.0]] and not batch.terminated.any()
    assert out.target.tolist() == [2.0, 2.0] * 2  # 1 + 0.5·(1 + 0.5·2), 1 + 0.5·2
    assert out.advantage.tolist() == [2.0, 1.0] * 2  # V(0) = 0, V(1) = 1


def test_the_end_of_a_rollout_is_followed_by_the_value_of_where_it_stands():
    batch, value = rollout("Countdown-v0", 1, 5)
    out = batch.estimates(value, discount=0.5, gae_lambda=1.0)
    assert batch.cu_seqlens.tolist() == [0, 3, 5] and batch.terminated.tolist() == [True, False]
    assert out.target.tolist() == [1.75, 1.5, 1.0, 2.0, 2.0]
    one = batch.estimates(value, discount=0.5, gae_lambda=0.0)
    assert one.target.tolist() == [1.5, 2.0, 1.0, 1.5, 2.0]  # r + 0.5·V(s')


def test_gae_at_lambda_one_is_the_return_minus_the_baseline():
    batch, value = rollout("Countdown-v0", 3, 6)
    out = batch.estimates(value, discount=0.9, gae_lambda=1.0)
    baseline = value[: len(batch.reward)]
    assert torch.allclose(out.advantage, batch.returns(0.9) - baseline)


OFF = [each for each in DEEP if issubclass(each.learner, OffPolicy)]


@pytest.mark.parametrize("algorithm", OFF, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "env, after, terminated",
    [("Countdown-v0", [1.0, 2.0, 3.0, 1.0], [0.0, 0.0, 1.0, 0.0]),
     ("Truncated-v0", [1.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0])],
)  # fmt: skip
def test_the_memory_holds_true_last_observations_and_only_terminations(
    algorithm, env, after, terminated
):
    learner = made(algorithm, env, **options(algorithm))
    for _ in range(4):
        learner.iterate()
    rows = learner.replay.rows[:4]
    assert rows[:, -3].tolist() == after and rows[:, -1].tolist() == terminated
    assert rows[:, -2].tolist() == [1.0] * 4


def test_the_memory_overwrites_its_oldest_rows():
    replay = Replay(3, 1, 1)
    for first in (0.0, 2.0, 4.0):
        column = np.array([[first], [first + 1.0]], np.float32)
        replay.add(column, column, column, column[:, 0], np.zeros(2, bool))
    assert sorted(replay.rows[:, 0].tolist()) == [3.0, 4.0, 5.0] and replay.size == 3


@pytest.mark.parametrize("env", KINDS)
def test_ppo_at_ratio_one_is_a2c(env):
    environments = Environments(env, {}, 4, 0)
    torch.manual_seed(0)
    encoder = Encoder(environments, CPU)
    policy = policy_for(environments.actions, [encoder.size, 8])
    batch = collect(environments, policy, encoder, steps_of_each(8))
    weights = Weights(policy.parameters, CPU)
    advantage = torch.randn(32)

    def gradient(**given):
        outputs = policy.outputs(batch.observation)
        return weights.gradient(
            policy.loss(outputs, batch.action, advantage, entropy_coef=0.1, **given).loss
        ).clone()

    old = policy.logprob(policy.outputs(batch.observation), batch.action).detach()
    ppo = gradient(algorithm="ppo", old_logprob=old)
    assert ppo.abs().max() > 0
    torch.testing.assert_close(ppo, gradient(algorithm="a2c"))


@pytest.mark.parametrize("env", KINDS)
def test_log_probabilities_and_kl_are_those_of_torch_distributions(env):
    environments = Environments(env, {}, 1, 0)
    policy = policy_for(environments.actions, [3])
    outputs, other = torch.randn(2, 5, 2 if env == KINDS[0] else 1)

    def torchs(x):
        if env == KINDS[0]:
            return Categorical(logits=x)
        return Independent(Normal(x, policy.log_std.exp()), 1)

    action = policy.sample(outputs)
    torch.testing.assert_close(policy.logprob(outputs, action), torchs(outputs).log_prob(action))
    torch.testing.assert_close(
        policy.kl(policy.distribution(outputs), other),
        kl_divergence(torchs(outputs), torchs(other)),
    )


def test_a_categorical_draws_actions_as_often_as_it_says():
    torch.manual_seed(0)
    policy = policy_for(gymnasium.spaces.Discrete(3), [1])
    p = torch.tensor([0.1, 0.6, 0.3])
    drawn = policy.sample(p.log().expand(20_000, 3))
    found = torch.bincount(drawn, minlength=3) / 20_000
    assert (found - p).abs().max() < 0.015  # 4 standard errors


def test_the_squashed_gaussians_log_probability_does_not_overflow():
    mean, log_std = torch.randn(2, 6, 3, dtype=torch.float64)
    noise = torch.randn(6, 3, dtype=torch.float64)
    base = Independent(Normal(mean, log_std.exp()), 1)
    peer = TransformedDistribution(base, [bijections.TanhTransform(cache_size=1)])
    action, logprob = squashed(mean, log_std, noise)
    u = mean + log_std.exp() * noise
    near = u.abs() < 3.0
    assert near.any()
    torch.testing.assert_close(logprob, peer.log_prob(peer.transforms[0](u)))
    far = torch.tensor([[-60.0, 60.0]], requires_grad=True)
    action, logprob = squashed(far, torch.zeros(1, 2), torch.zeros(1, 2))
    logprob.sum().backward()
    # log(1 − tanh²(60)) = 2·log 2 − 120 to the last bit of float32.
    slope = 2.0 * math.log(2.0) - 120.0
    assert logprob.item() == pytest.approx(2 * (-0.5 * math.log(2 * math.pi) - slope))
    assert far.grad.tolist() == [[-2.0, 2.0]] and action.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("env", KINDS)
@pytest.mark.parametrize("limit", [0.001, 0.05])
def test_trpo_stays_within_its_kl_and_improves(env, limit):
    learner = made(algorithms()["trpo"], env, target_kl=limit, rollout=128)
    batch = learner.collect()
    advantage = torch.randn(len(batch.reward))

    def now():
        with torch.no_grad():
            outputs = learner.policy.outputs(batch.observation)
            return outputs, learner.policy.logprob(outputs, batch.action)

    outputs, before = now()
    old = learner.policy.distribution(outputs)
    _, kl = learner.constrained_step(batch, advantage)
    outputs, after = now()
    measured = learner.policy.kl(old, outputs).mean().item()
    assert kl == pytest.approx(measured, rel=1e-4) and 0.3 * limit < measured <= limit
    assert ((after - before).exp() * advantage).mean() > advantage.mean()


def test_trpo_leaves_the_policy_where_no_step_holds():
    learner = made(algorithms()["trpo"], "CartPole-v1", line_search=1, cg_damping=0.0)
    batch = learner.collect()
    start = learner.policy_weights.vector.detach().clone()
    learner.policy.kl = lambda old, outputs: outputs.square().sum(-1) + 1.0
    _, kl = learner.constrained_step(batch, torch.randn(len(batch.reward)))
    assert kl == 0.0 and torch.equal(learner.policy_weights.vector, start)


@pytest.mark.parametrize("env", KINDS)
def test_the_fisher_product_is_the_curvature_of_the_kl(env):
    learner = made(algorithms()["trpo"], env, cg_damping=0.0)
    batch = learner.collect()
    with torch.no_grad():
        old = learner.policy.distribution(learner.policy.outputs(batch.observation))
    way = torch.randn_like(learner.policy_weights.vector)
    way *= 0.1 / way.norm()  # of a shorter one the KL is the rounding of float32
    curvature = way.dot(learner._fisher(batch.observation, old)(way))
    with torch.no_grad():
        learner.policy_weights.vector += way
        kl = learner.policy.kl(old, learner.policy.outputs(batch.observation)).mean()
    assert kl.item() == pytest.approx(0.5 * curvature.item(), rel=0.1)


def test_a_step_of_the_vector_is_a_step_of_every_parameter():
    torch.manual_seed(0)
    plain, flat = Mlp([3, 4, 2], torch.tanh), Mlp([3, 4, 2], torch.tanh)
    for mine, its in zip(flat.parameters, plain.parameters):
        mine.data.copy_(its)
    weights = Weights(flat.parameters, CPU).adam(0.1)
    optimizer = torch.optim.Adam(plain.parameters, 0.1)
    x = torch.randn(5, 3)
    for _ in range(3):
        loss = plain(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters, 0.01)
        optimizer.step()
        torch.testing.assert_close(weights.step(flat(x).square().mean(), 0.01), norm)
    torch.testing.assert_close(flat(x), plain(x))


NOISY = [each for each in OFF if "noise_correlation" in each.settings.model_fields]


@pytest.mark.parametrize("algorithm", NOISY, ids=lambda each: each.name)
def test_correlated_noise_is_as_large_as_any_and_random_actions_are_even(algorithm):
    learner = made(algorithm, "Pendulum-v1", noise_correlation=0.9)
    noise = np.stack([learner.next_noise().copy() for _ in range(20_000)])[:, 0, 0]
    assert noise.std() == pytest.approx(1.0, abs=0.1)
    assert np.corrcoef(noise[1:], noise[:-1])[0, 1] == pytest.approx(0.9, abs=0.02)
    even = learner.random_action(noise[:, None])
    assert np.abs(even).max() <= 1.0 and np.abs(even).mean() == pytest.approx(0.5, abs=0.05)
