# SPDX-License-Identifier: Apache-2.0
"""The fused losses against the papers' formulas, one answer at a time in plain PyTorch.

Nothing of the library's formulas is used: each is written again, as a paper has it.
"""

import math

import pytest
import torch

import rlkern
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.backends import _load
from rlkern.backends.eager.gates import GATES
from rlkern.backends.eager.levels import LEVELS

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
LENGTHS = (4, 1, 6, 3, 2, 5)
V = 23


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def clipped(ratio, a, low=0.2, high=0.2):
    return torch.maximum(-ratio * a, -ratio.clamp(1 - low, 1 + high) * a)


def k3(p, ref):
    return (ref - p).exp() - (ref - p) - 1


def cispo(p, old, a, ref):
    return -(p - old).exp().clamp(0, 5).detach() * a * p


def sapo(p, old, a, ref):
    tau = 1.0 if a > 0 else 1.05
    return -a * 4 / tau / (1 + (-tau * ((p - old).exp() - 1)).exp())


def gmpo(p, old, a, ref):
    sign = torch.sign(a)
    d = sign * torch.minimum(sign * (p - old), sign * (p - old).clamp(-0.4, 0.4))
    return (-a * d.mean().exp()).expand_as(p)


def vespo(p, old, a, ref):
    k, rate = (2, 3) if a > 0 else (3, 2)
    w = ((p - old).exp().prod()).detach()
    return -(w**k) * (rate * (1 - w)).exp() * a * p


def topr(p, old, a, ref):
    w = (p - old).exp().prod().detach()
    return -a * p * (1 if a > 0 else min(w, torch.tensor(1.0)))


def dppo(p, old, a, ref):
    moved = p.exp() - old.exp()
    kept = moved <= 0.15 if a > 0 else moved >= -0.15
    return -a * (p - old).exp().clamp(max=20).detach() * p * kept


def dppo_kl(p, old, a, ref):
    new, was = p.exp(), old.exp()
    moved = was * (was / new).log() + (1 - was) * ((1 - was) / (1 - new)).log()
    held = (moved > 0.05) & ((new > was) if a > 0 else (new < was))
    return -a * (p - old).exp().clamp(max=20).detach() * p * ~held


def prime_ipo(p, old, a, ref):
    kept = (p.exp() - old.exp()).abs() <= 0.1
    return -a * (p - old).exp() * kept + 1e-3 * (p - old) ** 2


def cfpo(p, old, a, ref):
    r = (p - old).exp()
    return -(r * a - a.abs() / (2 * 0.2) * (r - 1) ** 2)


def dual_clip(p, old, a, cap):
    loss = clipped((p - old).exp(), a)
    return loss if a > 0 else loss.clamp(max=-cap * a)


def geometric(p, old):
    return (p - old).mean().exp().expand_as(p)


TOKEN_LOSS = {
    "reinforce": lambda p, old, a, ref: -a * p,
    "ppo": lambda p, old, a, ref: clipped((p - old).exp(), a),
    "grpo": lambda p, old, a, ref: clipped((p - old).exp(), a) + 0.3 * k3(p, ref),
    "dr_grpo": lambda p, old, a, ref: clipped((p - old).exp(), a),
    "dapo": lambda p, old, a, ref: clipped((p - old).exp(), a, 0.2, 0.28),
    "gspo": lambda p, old, a, ref: clipped(geometric(p, old), a, 3e-4, 4e-4),
    "luspo": lambda p, old, a, ref: clipped(geometric(p, old), a, 2e-3, 2.5e-3),
    "gspo_token": lambda p, old, a, ref: clipped(
        geometric(p, old).detach() * p.exp() / p.exp().detach(), a, 3e-4, 4e-4
    ),
    "rloo": lambda p, old, a, ref: clipped((p - old).exp().prod().expand_as(p), a),
    "dual_clip_ppo": lambda p, old, a, ref: dual_clip(p, old, a, 3),
    "intellect2": lambda p, old, a, ref: dual_clip(p, old, a, 4) + 0.001 * k3(p, ref),
    "dro": lambda p, old, a, ref: -(a * p - 0.05 * (p - old) ** 2),
    "a_star_po": lambda p, old, a, ref: ((1e-3 * (p - old).sum() - a) ** 2).expand_as(p),
    "cispo": cispo, "sapo": sapo, "gmpo": gmpo, "vespo": vespo, "topr": topr, "dppo": dppo,
    "dppo_kl": dppo_kl, "prime_ipo": prime_ipo, "cfpo": cfpo,
    "dft": lambda p, old, a, ref: -p.exp().detach() * a * p,
}  # fmt: skip
OF_ANSWERS = ("grpo", "cfpo", "gspo", "gspo_token", "sapo", "gmpo", "rloo", "a_star_po")
OF_SUMS = ("dr_grpo", "luspo", "topr", "dppo", "dppo_kl")


def over_tokens(answers):
    return torch.cat(answers).mean()


def over_answers(answers):
    return sum(x.mean() for x in answers) / len(answers)


def summed(answers):
    return sum(x.sum() for x in answers) / len(answers)


AVERAGE = {
    **dict.fromkeys(TOKEN_LOSS, over_tokens),
    **dict.fromkeys(OF_ANSWERS, over_answers),
    **dict.fromkeys(OF_SUMS, summed),
}


def off_policy_batch():
    """Returns (logits, token, mask, old, ref, advantage): padded answers, some far off policy."""
    random = torch.Generator().manual_seed(3)
    shape = len(LENGTHS), max(LENGTHS)
    logits = torch.randn(*shape, V, generator=random, dtype=torch.float64)
    token = torch.randint(V, shape, generator=random)
    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    logits[:, 0, 0], token[:, 0] = 3.5, 0  # likely tokens, that can move by much
    logprob = logits.log_softmax(-1).gather(-1, token[..., None]).squeeze(-1)
    old = (logprob + torch.randn(shape, generator=random, dtype=torch.float64)).clamp(max=-0.05)
    old[[0, 3], 1] = logprob[[0, 3], 1] - 3.2  # a ratio beyond every cap
    ref = logprob + 0.3 * torch.randn(shape, generator=random, dtype=torch.float64)
    advantage = torch.tensor([1.2, -0.7, 0.5, -1.1, 0.8, -0.4], dtype=torch.float64)
    old[~mask] = ref[~mask] = math.nan
    return logits, token, mask, old, ref, advantage


def test_the_formulas_here_are_of_every_gate_and_level():
    declared = [find_algorithm(name) for name in TOKEN_LOSS]
    assert {a.gate for a in declared} == set(GATES)
    assert {a.level for a in declared} == set(LEVELS)


@pytest.mark.parametrize("name", TOKEN_LOSS)
def test_the_fused_loss_is_the_formula_of_the_paper(backend, name):
    logits, token, mask, old, ref, advantage = off_policy_batch()
    plain = logits.clone().requires_grad_()
    answers = []
    for b, length in enumerate(LENGTHS):
        p = plain[b, :length].log_softmax(-1)[torch.arange(length), token[b, :length]]
        answers.append(TOKEN_LOSS[name](p, old[b, :length], advantage[b], ref[b, :length]))
    expected = AVERAGE[name](answers)
    expected.backward()

    leaf = logits.clone().requires_grad_()
    kl = {"kl_coef": 0.3} if name == "grpo" else {}
    out = rlkern.policy_loss(
        leaf, token, advantage, mask, old_logprob=old, ref_logprob=ref, algorithm=name, **kl
    )
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=1e-12, atol=1e-15)
    if any(key.startswith("clip_") for key in find_algorithm(name).defaults):
        clips = rlkern.metrics_dict(out.metrics)
        assert clips["clip_ratio/region_mean"] > 0  # the batch tests the clip


@pytest.mark.parametrize("name", rlkern.algorithms())
def test_twenty_rollouts_raise_the_expected_reward(name):
    random = torch.Generator().manual_seed(0)
    policy = torch.zeros(3, 4, requires_grad=True)  # three tokens, of which 0 is always right
    optimizer = torch.optim.Adam([policy], lr=0.1)
    for _ in range(20):
        start = policy.detach().softmax(-1)
        token = torch.multinomial(start, 64, replacement=True, generator=random).T.contiguous()
        mask = torch.ones_like(token, dtype=torch.bool)
        reward = (token == 0).float().mean(-1)
        old = start.log().expand(64, 3, 4).gather(-1, token[..., None]).squeeze(-1)
        from_start = torch.full_like(old, math.log(1 / 4))
        anchor = {"old": old, "reference": from_start}[rlkern.algorithms()[name].anchor]
        for _ in range(2):
            advantage, logits = reward - reward.mean(), policy.expand(64, 3, 4)
            declared, made = rlkern.algorithms()[name], {}
            if declared.statistic:
                now = rlkern.token_logprob(logits, token)
                made[declared.statistic_row] = rlkern.statistics.factor(
                    now.logprob, anchor, advantage, mask, entropy=now.entropy, algorithm=name
                )
            loss = rlkern.policy_loss(
                logits, token, advantage, mask, **made,
                old_logprob=anchor, ref_logprob=from_start, algorithm=name,
            ).loss  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert policy.detach().softmax(-1)[:, 0].mean() > 0.6  # from 0.25
