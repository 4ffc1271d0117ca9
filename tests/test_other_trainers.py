# SPDX-License-Identifier: Apache-2.0
"""The losses for trainers that cannot be installed here, called as those trainers call them.

Each is held to a formula written out here. None of them was run inside its trainer.
"""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from rlkern.integrations import prime_rl, skyrl, slime, torchtitan

T, V = 6, 11


def rows(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns log-probabilities, those of the old policy, advantages and a mask with a hole."""
    generator = torch.Generator().manual_seed(seed)
    logprob = -torch.rand(shape, generator=generator) * 2
    old = logprob + 0.6 * torch.randn(shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 1] = False
    return logprob.requires_grad_(), old.clamp(max=0), torch.randn(shape, generator=generator), mask


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def assert_same(ours: Tensor, eager: Tensor, x: Tensor) -> None:
    torch.testing.assert_close(ours, eager)
    gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (ours, eager)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


@dataclass
class LossInputs:
    """prime-rl's, field by field."""

    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor
    loss_weights: Tensor | None = field(default=None)


@pytest.mark.parametrize("weighted", [False, True])
def test_prime_rl_gets_its_own_ipo_by_name(weighted):
    logprob, old, advantage, mask = rows(T)
    weights = torch.rand(T) if weighted else None
    inputs = LossInputs(logprob, old, None, advantage, mask, weights)
    out = prime_rl.loss(inputs, **{"algorithm": "prime_ipo", "clip_low": 0.1, "clip_high": 0.1})
    kept = mask & ((logprob.exp() - old.exp()).abs() <= 0.1)
    terms = -(kept * advantage) * (logprob - old).exp() + 1e-3 * mask * (logprob - old).square()
    assert 0 < kept.sum() < mask.sum()
    assert_same(out.loss, (terms if weights is None else terms * weights).sum(), logprob)
    assert all(isinstance(x, Tensor) and x.ndim == 0 for x in out.metrics.values())


def test_prime_rl_gets_a_loss_of_the_sequence_with_kl():
    logprob, old, advantage, mask = rows(T, seed=1)
    advantage = torch.full_like(advantage, -0.7)
    ref = old - 0.3
    given = {"algorithm": "gspo", "clip_low": 0.02, "clip_high": 0.02, "kl_coef": 0.1}
    out = prime_rl.loss(LossInputs(logprob, old, ref, advantage, mask), **given)
    ratio = ((logprob - old)[mask].mean()).exp()
    surrogate = clipped(ratio, advantage[mask], 0.02, 0.02).sum()
    kl = ((ref - logprob).exp() - 1 - (ref - logprob))[mask].sum()
    assert_same(out.loss, surrogate + 0.1 * kl, logprob)


OFF = dict.fromkeys(skyrl._SWITCHES)
SKYRL = SimpleNamespace(off_policy_correction=SimpleNamespace(**OFF, geo_mask_high=1.01))


@pytest.mark.parametrize("algorithm", ["ppo", "gspo"])
def test_skyrl_gets_the_sum_over_its_divided_advantages(algorithm):
    logprob, old, advantage, mask = rows(3, T)
    advantage = advantage / mask.sum()
    loss = skyrl.policy_loss(algorithm, clip_low=0.2, clip_high=0.28)
    value, metrics = loss(
        logprob, old, advantage, config=SKYRL, loss_mask=mask.float(), rollout_logprobs=None
    )
    log_ratio = logprob - old
    if algorithm == "gspo":
        mean = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
        log_ratio = mean.expand_as(log_ratio)
    eager = (clipped(log_ratio.exp(), advantage, 0.2, 0.28) * mask).sum()
    assert_same(value, eager, logprob)
    assert type(metrics["clip_ratio"]) is float and 0 < metrics["clip_ratio"] < 1


@pytest.mark.parametrize("name,value", [("tis_ratio_type", "token"), (skyrl._SWITCHES[-1], 2.0)])
def test_skyrls_correction_is_refused_not_left_out(name, value):
    logprob, old, advantage, mask = rows(3, T)
    config = SimpleNamespace(off_policy_correction=SimpleNamespace(**{**OFF, name: value}))
    with pytest.raises(ValueError, match=f"off_policy_correction must be off.*{name}"):
        skyrl.policy_loss("ppo")(logprob, old, advantage, config=config, loss_mask=mask)


PROMPTS, ANSWERS = (2, 3), (4, 2)


def scores(logits, *, args, unconcat_tokens, total_lengths, response_lengths, with_entropy):
    """Returns what slime's function of this signature returns without parallelism."""
    assert with_entropy and args.temperature == 1
    found: dict[str, list[Tensor]] = {"log_probs": [], "entropy": []}
    first = 0
    for token, total, answer in zip(unconcat_tokens, total_lengths, response_lengths):
        log_pi = logits[0, first + total - answer - 1 : first + total - 1].log_softmax(-1)
        found["log_probs"].append(log_pi.gather(-1, token[-answer:, None]).squeeze(-1))
        found["entropy"].append(-(log_pi.exp() * log_pi).sum(-1))
        first += total
    return torch.empty(0), found


@pytest.fixture
def slimes(monkeypatch):
    """Returns (args, batch, logits) as slime hands them to a custom loss."""
    module = ModuleType("slime.backends.megatron_utils.loss")
    module.get_log_probs_and_entropy = scores
    module.get_rollout_top_p_logprob_kwargs = lambda args, batch: {}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("slime", "slime.backends", "slime.backends.megatron_utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    generator = torch.Generator().manual_seed(2)
    totals = [p + a for p, a in zip(PROMPTS, ANSWERS)]
    logits = torch.randn(1, sum(totals), V, generator=generator).requires_grad_()
    tokens = [torch.randint(V, (n,), generator=generator) for n in totals]
    args = SimpleNamespace(
        use_rollout_logprobs=False, use_kl_loss=True, kl_loss_type="low_var_kl", kl_loss_coef=0.1,
        entropy_coef=0.01, temperature=1,
    )  # fmt: skip
    lengths = {"total_lengths": totals, "response_lengths": list(ANSWERS)}
    _, found = scores(
        logits.detach(), args=args, unconcat_tokens=tokens, with_entropy=True, **lengths
    )
    noise = [0.5 * torch.randn(n, generator=generator) for n in ANSWERS]
    batch = {
        **lengths,
        "unconcat_tokens": tokens,
        "advantages": [torch.full((ANSWERS[0],), 0.8), torch.full((ANSWERS[1],), -1.2)],
        "log_probs": [x + n for x, n in zip(found["log_probs"], noise)],
        "ref_log_probs": [x - 0.2 for x in found["log_probs"]],
        "loss_masks": [torch.tensor([1, 0, 1, 1]), torch.tensor([1, 1])],
    }
    return args, batch, logits


def sample_mean(batch):
    """Returns slime's reducer: the sum over samples of the mean over a sample's tokens."""

    def reduce(x: Tensor) -> Tensor:
        parts = zip(x.split(list(ANSWERS)), batch["loss_masks"])
        return torch.stack([(part * m).sum() / m.sum() for part, m in parts]).sum()

    return reduce


@pytest.mark.parametrize("algorithm", ["ppo", "gspo"])
def test_slime_gets_terms_that_it_reduces(algorithm, slimes):
    args, batch, logits = slimes
    reduce = sample_mean(batch)
    loss = slime.custom_loss(algorithm, clip_low=0.2, clip_high=0.2)
    value, log = loss(args, batch, logits, reduce)
    lengths = {k: batch[k] for k in ("total_lengths", "response_lengths", "unconcat_tokens")}
    _, found = scores(logits, args=args, with_entropy=True, **lengths)
    logprob, entropy = (torch.cat(found[k]) for k in ("log_probs", "entropy"))
    log_ratio = logprob - torch.cat(batch["log_probs"])
    if algorithm == "gspo":
        parts = zip(log_ratio.split(list(ANSWERS)), batch["loss_masks"])
        log_ratio = torch.cat([((x * m).sum() / m.sum()).expand_as(x) for x, m in parts])
    terms = clipped(log_ratio.exp(), torch.cat(batch["advantages"]), 0.2, 0.2)
    minus = torch.cat(batch["ref_log_probs"]) - logprob
    kl = (minus.exp() - 1 - minus).clamp(-10, 10)
    eager = reduce(terms) - 0.01 * reduce(entropy) + 0.1 * reduce(kl)
    assert_same(value, eager, logits)
    assert torch.equal(log["loss"], value.detach())


def test_what_slime_applies_in_its_own_loss_is_refused(slimes):
    args, batch, logits = slimes
    args.use_tis = True
    with pytest.raises(ValueError, match="use_tis must be off"):
        slime.custom_loss("ppo")(args, batch, logits, sample_mean(batch))
    args.use_tis, batch["response_lengths"] = False, [4, 2]
    whole = scores
    sys.modules["slime.backends.megatron_utils.loss"].get_log_probs_and_entropy = lambda *a, **k: (
        None,
        {n: [x[:1] for x in v] for n, v in whole(*a, **k)[1].items()},
    )
    with pytest.raises(ValueError, match="context_parallel_size must be 1"):
        slime.custom_loss("ppo")(args, batch, logits, sample_mean(batch))


@pytest.mark.parametrize("count", [None, 40.0])
def test_torchtitan_gets_its_dapo_loss_and_drops_tokens_nobody_scored(count):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(T, V, generator=generator).requires_grad_()
    labels = torch.randint(V, (T,), generator=generator)
    labels[1] = -100
    _, _, advantage, mask = rows(T)
    log_pi = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)
    old = log_pi.detach() + 0.5 * torch.randn(T, generator=generator)
    old[3] = torch.nan
    loss = torchtitan.policy_loss("dapo", clip_low=0.2, clip_high=0.28)
    value, metrics = loss(
        logits, labels, count, generator_logprobs=old, advantages=advantage, loss_mask=mask
    )
    kept = mask & old.isfinite()
    ratio = (log_pi - old)[kept].exp()
    eager = clipped(ratio, advantage[kept], 0.2, 0.28).sum() / (count or 1)
    assert_same(value, eager, logits)
    assert torch.equal(metrics["loss/mean"], value.detach())


def test_torchtitans_rows_are_no_place_for_a_loss_of_sequences():
    with pytest.raises(ValueError, match="got 'gspo' of level 'sequence'"):
        torchtitan.policy_loss("gspo")


@pytest.mark.parametrize("make", [skyrl.policy_loss, slime.custom_loss, torchtitan.policy_loss])
def test_a_wrong_name_or_coefficient_is_said_before_the_first_step(make):
    with pytest.raises(ValueError, match="algorithm must be one of .*, got 'cispoo'"):
        make("cispoo")
    with pytest.raises(TypeError, match="cispo: unknown coefficient 'clip_hihg'"):
        make("cispo", clip_hihg=0.2)
    with pytest.raises(ValueError, match="clip_low must not be negative, got -1.0"):
        make("ppo", clip_low=-1.0)


MAKERS = [skyrl.policy_loss, slime.custom_loss, torchtitan.policy_loss]


@pytest.mark.parametrize(
    "algorithm,why",
    [
        ("a_star_po", "old_logprob is that of the reference"),
        ("on_policy_distillation", "advantage is that of a teacher"),
        ("m2po", "depends on all tokens of an optimizer step"),
        ("dupo", "copies groups of a batch"),
    ],
)
def test_what_needs_more_than_a_trainer_passes_is_refused(algorithm, why):
    for make in MAKERS[:2]:
        with pytest.raises(ValueError, match=f"{algorithm} is no loss of .*{why}"):
            make(algorithm)
    logprob, old, advantage, mask = rows(T)
    with pytest.raises(ValueError, match=f"{algorithm} is no loss of prime-rl: .*{why}"):
        prime_rl.loss(LossInputs(logprob, old, None, advantage, mask), algorithm=algorithm)


@pytest.mark.parametrize("name", ["mask", "reduction", "old_logprob"])
@pytest.mark.parametrize("make", MAKERS)
def test_what_a_trainer_gives_is_no_coefficient(make, name):
    with pytest.raises(TypeError, match=f"ppo: {name} is given by .* and no coefficient"):
        make("ppo", **{name: 1})


def test_a_term_that_the_trainer_gives_nothing_for_is_refused_at_once():
    for make in (skyrl.policy_loss, torchtitan.policy_loss):
        with pytest.raises(ValueError, match="ref_logprob must be given"):
            make("ppo", kl_coef=0.1)
    with pytest.raises(ValueError, match="entropy must be given"):
        skyrl.policy_loss("ppo", entropy_coef=0.1)
    with pytest.raises(TypeError, match="kl_coef is an option of slime and no coefficient"):
        slime.custom_loss("ppo", kl_coef=0.1)


@pytest.mark.parametrize("sampled", [False, True])
def test_slimes_old_log_probabilities_must_be_there(sampled, slimes):
    args, batch, logits = slimes
    args.use_rollout_logprobs = sampled
    if not sampled:
        del batch["log_probs"]
    name = "rollout_log_probs" if sampled else "log_probs"
    with pytest.raises(ValueError, match=f"ppo: the batch must have {name}, got .*'advantages'"):
        slime.custom_loss("ppo")(args, batch, logits, sample_mean(batch))


def test_prime_rl_may_pass_a_mask_of_integers():
    logprob, old, advantage, mask = rows(T)
    weights = torch.rand(T)
    as_bool, as_int = (
        prime_rl.loss(LossInputs(logprob, old, None, advantage, x, weights)).loss
        for x in (mask, mask.int())
    )
    assert torch.equal(as_bool, as_int)
