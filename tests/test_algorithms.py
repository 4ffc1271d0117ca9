# SPDX-License-Identifier: Apache-2.0
"""The invariants that every registered algorithm gets for free; none is named here."""

import math

import pytest
import torch

import rlkern
from rlkern.backends import _load
from rlkern.backends.eager.gates import GATES
from rlkern.backends.eager.levels import LEVELS, Sequences
from rlkern.testing.cases import Batch, Case, make_batch

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
# A term is switched on by its coefficient; an algorithm takes those it declares.
TERMS = {"kl_coef": 0.3, "entropy_coef": 0.2}
NAMES = list(rlkern.algorithms())
EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def batch_of(B=4, T=5, **options) -> Batch:
    case = Case("algorithms", B=B, T=T, V=19, correction=True, **options)
    return make_batch(case, torch.float64)


def terms_of(name):
    return {key: x for key, x in TERMS.items() if key in rlkern.algorithms()[name].defaults}


def statistic_of(name, batch):
    """Returns some factor of the tokens, by its name, where a statistic makes one."""
    declared = rlkern.algorithms()[name]
    return {declared.statistic_row: batch.correction} if declared.statistic else {}


def weight_of(name, mask):
    mode = rlkern.algorithms()[name].aggregation
    return rlkern.aggregate.token_weight(mask, mode, dtype=torch.float64)


def run(name, batch, weight=None, **options):
    """Returns (loss, metrics, gradient) with every term the algorithm has."""
    leaf = batch.logits.detach().clone().requires_grad_()
    out = rlkern.policy_loss(
        leaf, batch.token, batch.advantage, batch.mask,
        **{"old_logprob": batch.old_logprob, "ref_logprob": batch.ref_logprob,
           "temperature": batch.temperature, "algorithm": name, "weight": weight,
           **statistic_of(name, batch), **terms_of(name), **options},
    )  # fmt: skip
    out.loss.backward()
    return out.loss.detach(), out.metrics, leaf.grad


def indexed(batch, index):
    rows = {k: x[index] if isinstance(x, torch.Tensor) else x for k, x in vars(batch).items()}
    return Batch(**rows)


def assert_same(got, expected):
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@EVERY
@pytest.mark.parametrize("garbage", (0.0, math.nan))
def test_padding_does_not_change_the_loss(backend, name, garbage):
    batch, extra = batch_of(sequence_advantage=True), 3

    def pad(x):
        if not isinstance(x, torch.Tensor) or x.ndim == 1:
            return x
        filling = {torch.int64: -100, torch.bool: False}.get(x.dtype, garbage)
        tail = x.new_full((x.shape[0], extra, *x.shape[2:]), filling)
        return torch.cat([x, tail], 1)

    padded = Batch(**{key: pad(x) for key, x in vars(batch).items()})
    loss, metrics, gradient = run(name, padded)
    assert_same((loss, metrics, gradient[:, :-extra]), run(name, batch))
    assert gradient[:, -extra:].eq(0).all()


@EVERY
def test_the_order_of_the_sequences_does_not_change_the_loss(backend, name):
    batch, order = batch_of(), [2, 0, 3, 1]
    loss, metrics, gradient = run(name, batch)
    assert_same(run(name, indexed(batch, order)), (loss, metrics, gradient[order]))


@EVERY
@pytest.mark.parametrize("cut", (1, 2, 3))
def test_micro_batches_with_weights_of_the_whole_add_up(backend, name, cut):
    batch = batch_of()
    weight = weight_of(name, batch.mask)
    parts = [
        run(name, indexed(batch, part), weight[part]) for part in (slice(cut), slice(cut, None))
    ]
    losses, metrics, gradients = zip(*parts)
    together = sum(losses), rlkern.merge_metrics(list(metrics)), torch.cat(gradients)
    assert_same(together, run(name, batch))


@EVERY
def test_a_constant_shift_of_the_logits_changes_nothing(backend, name):
    batch = batch_of()
    shifted = Batch(**{**vars(batch), "logits": batch.logits + 100.0})
    for x, y in zip(run(name, shifted), run(name, batch)):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


def scale_of(declared):
    """Returns what the policy gradient is multiplied by: 1, but 2·beta for a regression on A."""
    numbers = [declared.defaults[c] for c in declared.gate_coef]
    zero, one, two = (
        GATES[declared.gate](torch.tensor(-1.0), torch.tensor(0.0), torch.tensor(a), *numbers).loss
        for a in (0.0, 1.0, 2.0)
    )
    linear = torch.isclose(two - one, one - zero)
    return 1.0 if linear else 2 * declared.defaults["beta"]


def share_of(declared, weight, advantage, mask):
    """Returns how much of weight·advantage each token's log π gets once the level has shared it."""
    d = torch.zeros_like(advantage).requires_grad_()
    numbers = [declared.defaults[c] for c in declared.gate_coef] + [0.0] * 4
    through_ratio = GATES[declared.gate](d, d.detach(), torch.ones_like(d), *numbers[:4]).loss
    if through_ratio.requires_grad and torch.autograd.grad(through_ratio.sum(), d)[0].any():
        return weight * advantage  # the gradient is that of log π itself
    level = LEVELS[declared.level](d, advantage, mask, Sequences(d.shape, None), *numbers[:4])
    return torch.autograd.grad((weight * advantage * level.log_ratio).sum(), d)[0]


@EVERY
@pytest.mark.parametrize("given_old", (True, False), ids=("old policy given", "no old policy"))
def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient(backend, name, given_old):
    batch, declared = batch_of(mask="garbage"), rlkern.algorithms()[name]
    leaf = batch.logits.detach().clone().requires_grad_()
    logprob = rlkern.token_logprob(leaf, batch.token, mask=batch.mask).logprob
    advantage = torch.where(batch.mask, batch.advantage, 0.0)
    share = share_of(declared, weight_of(name, batch.mask), advantage.double(), batch.mask)
    (-scale_of(declared) * share * logprob).sum().backward()
    old = logprob.detach() if given_old else None
    off = dict.fromkeys(terms_of(name), 0.0)
    one = torch.ones_like(batch.correction)  # what every statistic gives the tokens it keeps
    _, metrics, gradient = run(
        name, batch, old_logprob=old, ref_logprob=None, **{declared.statistic_row: one}, **off
    )
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-6, atol=1e-12)
    named = rlkern.metrics_dict(metrics)
    assert named["ratio/min"] == pytest.approx(1) == named["ratio/max"]
    assert named["clip_ratio/region_mean"] == 0


@EVERY
def test_a_batch_without_counted_tokens_gives_zero_and_a_finite_gradient(backend, name):
    batch = batch_of()
    for garbage in (0.0, math.nan, math.inf):
        rows = {k: torch.full_like(x, garbage) for k, x in vars(batch).items()
                if isinstance(x, torch.Tensor) and x.is_floating_point()}  # fmt: skip
        nothing = Batch(**{**vars(batch), **rows, "mask": torch.zeros_like(batch.mask)})
        loss, metrics, gradient = run(name, nothing)
        assert loss == 0 and gradient.eq(0).all()
        assert set(rlkern.metrics_dict(metrics).values()) == {0.0}


@EVERY
def test_the_single_pass_is_token_objective_after_token_logprob(backend, name):
    batch = batch_of(temperature="rows", mask="garbage")
    leaf = batch.logits.detach().clone().requires_grad_()
    scores = rlkern.token_logprob(leaf, batch.token, temperature=batch.temperature, mask=batch.mask)
    out = rlkern.token_objective(
        scores.logprob, batch.advantage, batch.mask, entropy=scores.entropy,
        old_logprob=batch.old_logprob, ref_logprob=batch.ref_logprob, algorithm=name,
        **statistic_of(name, batch), **terms_of(name),
    )  # fmt: skip
    out.loss.backward()
    assert_same(run(name, batch), (out.loss.detach(), out.metrics, leaf.grad))


@EVERY
def test_advantages_of_sequences_are_those_of_all_their_tokens(backend, name):
    batch = batch_of(sequence_advantage=True)
    spread = Batch(**{**vars(batch), "advantage": batch.advantage[:, None].expand(4, 5)})
    assert_same(run(name, spread), run(name, batch))


@EVERY
def test_every_coefficient_changes_the_loss_or_the_metrics(backend, name):
    batch, declared = batch_of(B=16), rlkern.algorithms()[name]
    defaults = {k: x for k, x in declared.defaults.items() if k not in declared.statistic_coef}
    before = run(name, batch, **defaults)
    for key, value in defaults.items():
        # A bound that nothing reaches shows only when it is lowered.
        tried = [run(name, batch, **{**defaults, key: x}) for x in (value + 0.15, value / 20)]
        assert any(not x.equal(y) for after in tried for x, y in zip(after, before)), key


@EVERY
def test_an_unknown_coefficient_is_refused_by_name(name):
    with pytest.raises(TypeError, match=rf"{name}: unknown coefficient 'clip_hihg', expected one"):
        run(name, batch_of(), clip_hihg=0.2)


@EVERY
def test_a_loss_whose_tokens_a_statistic_weighs_asks_for_the_factor(name):
    declared = rlkern.algorithms()[name]
    if declared.statistic:
        makes = rf"rlkern.statistics.factor\(.*algorithm='{name}'\) makes it"
        with pytest.raises(ValueError, match=f"policy_loss: {name} weighs tokens.*{makes}"):
            run(name, batch_of(), **{declared.statistic_row: None})
    for coefficient in declared.statistic_coef:
        with pytest.raises(TypeError, match=f"{name}: {coefficient} is a coefficient of rlkern.st"):
            run(name, batch_of(), **{coefficient: 0.5})


@EVERY
def test_packed_answers_are_padded_answers(backend, name):
    batch = batch_of(sequence_advantage=True)
    counted = batch.mask
    lengths = counted.sum(-1)
    packed = {
        key: x[counted] if isinstance(x, torch.Tensor) and x.ndim > 1 else x
        for key, x in vars(batch).items()
    }
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    loss, metrics, gradient = run(name, batch)
    flat = run(name, Batch(**packed), cu_seqlens=cu_seqlens)
    assert_same(flat, (loss, metrics, gradient[counted]))


@pytest.mark.parametrize("name", [*NAMES, *rlkern.offline_algorithms()])
def test_twenty_steps_raise_the_reward(tmp_path, name):
    """Of sampled answers to held-out prompts; of a reward model, its accuracy on held-out pairs."""
    pytest.importorskip("transformers")
    from trainer_helpers import any_algorithm, begun, mean_reward

    with rlkern.use_backend(BACKENDS[-1]):
        parts, learner, updater = begun(any_algorithm(tmp_path, name, seed=1), tmp_path)

        def measured():
            if parts.settings.declared.trains == "policy":
                return mean_reward(parts)
            return learner.evaluate()["eval/accuracy"]

        before = measured()
        for _ in range(20):
            values, _ = learner.step(updater, lambda sentence: None)
        assert measured() > before + 0.1
        assert values["skipped_updates"] == 0
        assert all(p.isfinite().all() for p in parts.parameters().values())
