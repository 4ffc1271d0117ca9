# SPDX-License-Identifier: Apache-2.0
"""What every algorithm's file must declare and say; none is named here."""

import importlib
import inspect
import math
import pkgutil
import re

import pytest
from trainer_helpers import asked

import rlkern
from rlkern.algorithms import registry
from rlkern.backends.eager.gates import GATES
from rlkern.backends.eager.group_advantage import KINDS
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.backends.eager.levels import LEVELS
from rlkern.runs.settings.layers import dotted, leaves
from rlkern.trainer.online.advantages import TABLE
from rlkern.trainer.settings import Settings, dump, of
from rlkern.trainer.settings.reads import facts, unread

ESTIMATORS = {
    name
    for name, x in inspect.getmembers(rlkern.advantage, inspect.isfunction)
    if x.__module__ == rlkern.advantage.__name__
}
# All functions there are advantages but optimal_value, which is the baseline of one.
OTHERS = {"gae", "reward", "optimal", "teacher", "win_rate"}
ADVANTAGES = {*KINDS, *ESTIMATORS, *OTHERS} - {"optimal_value"}
# What an advantage or an anchor takes that a declaration must ask for.
ASKS = {
    "gae": "value",
    "remax": "greedy",
    "gdpo": "several_rewards",
    "optimal": "reference_samples",
    "teacher": "teacher",
}
NAMES = list(rlkern.algorithms())
EVERY = pytest.mark.parametrize("name", NAMES)


def modules():
    """Returns the module that declares each algorithm with a policy_loss, by its name."""
    package = importlib.import_module("rlkern.algorithms")
    found = [
        importlib.import_module(f"{package.__name__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    ]
    declared = [m for m in found if isinstance(getattr(m, "ALGORITHM", None), rlkern.Algorithm)]
    return {m.ALGORITHM.name: m for m in declared}


@EVERY
def test_every_coefficient_has_a_default_and_every_default_a_source(name):
    declared = rlkern.algorithms()[name]
    assert set(declared.sources) == {*declared.defaults, *declared.settings}
    assert all(text.strip() for text in declared.sources.values())
    assert {*declared.gate_coef, *declared.statistic_coef} <= set(declared.defaults)
    assert all(math.isfinite(x) for x in declared.defaults.values())


@EVERY
def test_what_a_paper_does_not_have_is_off(name):
    declared = rlkern.algorithms()[name]
    lacking = [key for key, source in declared.sources.items() if source == "the paper has none"]
    assert all(declared.defaults.get(key, 0.0) == 0.0 for key in lacking)


def own_settings(name):
    """Returns the settings of a run by an algorithm that says nothing else."""
    return of(algorithm=name, **asked(name))


@EVERY
def test_every_setting_is_a_key_of_a_run_which_has_it_unless_it_is_given(name):
    declared = rlkern.algorithms()[name]
    assert set(declared.settings) <= {key for key, _ in leaves(Settings)}
    found = dotted(Settings, dump(own_settings(name)))
    assert {key: found[key] for key in declared.settings} == declared.settings
    assert found["groups.kind"] == declared.sampling
    assert found["coefficients"] == declared.defaults
    for key, value in declared.settings.items():
        other = not value if isinstance(value, bool) else value / 2 or 0.5
        other = 1 if isinstance(value, int) and not isinstance(value, bool) else other
        given = of(algorithm=name, **asked(name), **{key: other})
        assert value != other == dotted(Settings, dump(given))[key]


@EVERY
def test_settings_of_values_and_of_the_kl_are_declared_where_they_are_read_and_nowhere_else(name):
    declared = rlkern.algorithms()[name]
    run = facts(own_settings(name))
    assert [key for key in declared.settings if unread(key, run)] == []
    values = {"advantage.gae_lambda", "critic.coef", "critic.clip", "advantage.whiten"}
    assert not values & set(declared.settings) or "value" in declared.needs
    has_kl = declared.settings.get("reward.kl_coef", 0) > 0
    assert has_kl == ("kl" in declared.reward_terms)


@EVERY
def test_the_declaration_names_things_that_exist(name):
    declared = rlkern.algorithms()[name]
    assert declared.gate in GATES and declared.kl_estimator in KL_ESTIMATORS
    assert declared.level in LEVELS and declared.advantage in ADVANTAGES
    assert declared.aggregation in rlkern.aggregate.MODES


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
    own = {*declared.gate_coef, *declared.statistic_coef}
    assert set(declared.defaults) == {*own, "kl_coef", "entropy_coef"}
    if declared.statistic:
        taken = inspect.signature(rlkern.statistics.STATISTICS[declared.statistic]).parameters
        assert tuple(taken)[1:] == declared.statistic_coef


@pytest.mark.parametrize(
    ("key", "word"),
    {"sampling": "most", "anchor": "new", "needs": ("x",), "reward_terms": ("x",)}.items(),
)
def test_a_word_that_no_trainer_knows_is_refused(key, word):
    with pytest.raises(ValueError, match=f"a: {key} must be of .*, got '(most|new|x)'"):
        rlkern.Algorithm(
            "a", "b", gate="ppo_clip", advantage="gae", aggregation="token_mean", **{key: word}
        )


def test_every_gate_and_every_level_is_of_some_algorithm():
    declared = rlkern.algorithms().values()
    of_answers = {a.gate for a in rlkern.offline_algorithms().values()} - {""}
    assert {a.gate for a in declared} | of_answers == set(GATES)
    assert {a.level for a in declared} == set(LEVELS)
    assert {a.statistic for a in declared} - {""} == set(rlkern.statistics.STATISTICS)
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
    assert cited and identifier, "a line `Paper: …`, and `paper`, hold an arXiv number or a DOI"
    assert identifier.group(0) in cited.group(1)
    assert "ℓ_t" in text, "the equation of the loss begins with ℓ_t"
    assert "the loss is the mean over" in " ".join(text.lower().split())
    assert ">>> " in text and f'algorithm="{name}"' in text, "a doctest of the algorithm"


def test_the_trainer_makes_every_advantage_that_a_declaration_may_name():
    assert set(TABLE) == ADVANTAGES


def test_scanning_finds_every_file_that_declares_an_algorithm():
    assert sorted(modules()) == sorted(NAMES) and len(NAMES) >= 3
