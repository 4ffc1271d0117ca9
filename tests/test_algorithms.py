# SPDX-License-Identifier: Apache-2.0
"""The invariants that every registered algorithm gets for free; none is named here."""

import importlib
import inspect
import math
import pkgutil
import re

import pytest
import torch

import rlkern
from rlkern.algorithms import registry
from rlkern.backends import _load
from rlkern.reference.gates import GATES
from rlkern.reference.group_advantage import KINDS
from rlkern.reference.kl import KL_ESTIMATORS
from rlkern.reference.levels import LEVELS, Sequences
from rlkern.testing.cases import Batch, Case, make_batch

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
ESTIMATORS = {
    name
    for name, x in inspect.getmembers(rlkern.advantage, inspect.isfunction)
    if x.__module__ == rlkern.advantage.__name__
}
ADVANTAGES = {*KINDS, *ESTIMATORS, "gae", "reward", "optimal"}
# What an advantage or an anchor takes that a declaration must ask for.
ASKS = {
    "gae": "value",
    "remax": "greedy",
    "gdpo": "several_rewards",
    "optimal": "reference_samples",
}
# A term is switched on by its coefficient; an algorithm takes those it declares.
TERMS = {"kl_coef": 0.3, "entropy_coef": 0.2}
NAMES = list(rlkern.algorithms())
EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def modules():
    """Returns the module that declares each algorithm, by the algorithm's name."""
    package = importlib.import_module("rlkern.algorithms")
    found = [
        importlib.import_module(f"{package.__name__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    ]
    return {m.ALGORITHM.name: m for m in found if hasattr(m, "ALGORITHM")}


def batch_of(B=4, T=5, **options) -> Batch:
    return make_batch(Case("algorithms", B=B, T=T, V=19, **options), torch.float64)


def terms_of(name):
    return {key: x for key, x in TERMS.items() if key in rlkern.algorithms()[name].defaults}


def weight_of(name, mask):
    return rlkern.aggregate.token_weight(mask, rlkern.algorithms()[name].aggregation)


def run(name, batch, weight=None, **options):
    """Returns (loss, metrics, gradient) with every term the algorithm has."""
    leaf = batch.logits.detach().clone().requires_grad_()
    out = rlkern.policy_loss(
        leaf, batch.token, batch.advantage, batch.mask,
        **{"old_logprob": batch.old_logprob, "ref_logprob": batch.ref_logprob,
           "temperature": batch.temperature, "algorithm": name, "weight": weight,
           **terms_of(name), **options},
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
    _, metrics, gradient = run(name, batch, old_logprob=old, ref_logprob=None, **off)
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
        **terms_of(name),
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
    defaults = dict(declared.defaults)
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
def test_every_coefficient_has_a_default_and_every_default_a_source(name):
    declared = rlkern.algorithms()[name]
    assert set(declared.sources) == set(declared.defaults)
    assert all(text.strip() for text in declared.sources.values())
    assert {c for c in declared.gate_coef if c} <= set(declared.defaults)
    assert all(math.isfinite(x) for x in declared.defaults.values())


@EVERY
def test_the_declaration_names_things_that_exist(name):
    declared = rlkern.algorithms()[name]
    assert declared.gate in GATES and declared.kl_estimator in KL_ESTIMATORS
    assert declared.level in LEVELS and declared.advantage in ADVANTAGES
    assert declared.aggregation in rlkern.aggregate.MODES
    assert declared.sampling in registry.SAMPLING and declared.anchor in registry.ANCHORS
    assert set(declared.needs) <= set(registry.NEEDS)
    assert set(declared.reward_terms) <= set(registry.REWARD_TERMS)


@EVERY
def test_the_declaration_asks_for_what_it_takes(name):
    declared = rlkern.algorithms()[name]
    for advantage, needed in ASKS.items():
        assert (declared.advantage == advantage) == (needed in declared.needs), needed
    reads_reference = declared.anchor == "reference" or declared.defaults["kl_coef"] != 0
    assert reads_reference == ("reference" in declared.needs)


@EVERY
def test_coefficients_bear_the_names_of_the_formula_and_one_name_everywhere(name):
    declared = rlkern.algorithms()[name]
    widths = {"low": "clip_low", "high": "clip_high", "cap": "clip_cap"}

    def named(function, inputs):
        parameters = list(inspect.signature(function).parameters.values())[inputs:]
        given = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        return tuple(widths.get(p, p) for p in given)

    takes = {named(GATES[declared.gate], 3), named(LEVELS[declared.level], 4)} - {()}
    assert takes == ({declared.gate_coef} if declared.gate_coef else set())
    assert set(declared.defaults) == {*declared.gate_coef, "kl_coef", "entropy_coef"}


def test_every_gate_and_every_level_is_of_some_algorithm():
    declared = rlkern.algorithms().values()
    assert {a.gate for a in declared} == set(GATES)
    assert {a.level for a in declared} == set(LEVELS)
    assert {a.sampling for a in declared} == set(registry.SAMPLING)
    assert {x for a in declared for x in a.needs} == set(registry.NEEDS)
    assert {x for a in declared for x in a.reward_terms} == set(registry.REWARD_TERMS)


@EVERY
def test_the_file_states_equation_paper_average_and_a_doctest(name):
    module, declared = modules()[name], rlkern.algorithms()[name]
    assert module.__name__.endswith(f".{name}")
    text = module.__doc__
    cited = re.search(r"^Paper: (.*)", text, re.MULTILINE)
    identifier = re.search(r"\d{4}\.\d{4,5}|10\.\d{4,}/\S+?(?=[,. ]|$)", declared.paper)
    assert identifier.group(0) in cited.group(1)
    assert "ℓ_t" in text and ">>> " in text
    assert "the loss is the mean over" in " ".join(text.lower().split())
    assert f'algorithm="{name}"' in text


def test_scanning_finds_every_file_that_declares_an_algorithm():
    assert sorted(modules()) == sorted(NAMES) and len(NAMES) >= 3
