# SPDX-License-Identifier: Apache-2.0
"""What the file of every algorithm that learns from given answers must declare; none is named."""

import importlib
import math
import pkgutil
import re

import pytest
import torch

import rlkern
from rlkern.algorithms import registry
from rlkern.backends.eager.gates import GATES
from rlkern.backends.eager.preference_loss import PREFERENCE_KINDS
from rlkern.runs.settings.layers import dotted
from rlkern.trainer import UserError
from rlkern.trainer.settings import Settings, of

KNOWN = rlkern.offline_algorithms()
EVERY = pytest.mark.parametrize("name", KNOWN)


def modules():
    """Returns the module of each algorithm that learns from given answers, by its name."""
    package = importlib.import_module("rlkern.algorithms")
    names = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    found = [importlib.import_module(name) for name in names]
    offline = [
        m for m in found if isinstance(getattr(m, "ALGORITHM", None), registry.OfflineAlgorithm)
    ]
    return {m.ALGORITHM.name: m for m in offline}


def test_scanning_finds_every_file_and_no_name_twice():
    assert sorted(modules()) == sorted(KNOWN) and len(KNOWN) >= 4
    assert not set(KNOWN) & set(rlkern.algorithms())


@EVERY
def test_every_default_and_every_setting_has_a_source(name):
    declared = KNOWN[name]
    assert set(declared.sources) == {*declared.defaults, *declared.settings}
    assert all(text.strip() for text in declared.sources.values())
    assert all(math.isfinite(x) for x in declared.defaults.values())


@EVERY
def test_the_declaration_names_things_that_exist(name):
    declared = KNOWN[name]
    assert declared.loss in rlkern.__all__


@pytest.mark.parametrize(
    ("key", "word"),
    {"learns_from": "rollouts", "trains": "x", "needs": ("x",)}.items(),
)
def test_a_word_that_no_trainer_knows_is_refused(key, word):
    declared = {"learns_from": "pairs", "loss": "preference_loss", key: word}
    with pytest.raises(ValueError, match=f"a: {key} must be of .*, got '(rollouts|x)'"):
        rlkern.OfflineAlgorithm("a", "b", **declared)


@EVERY
def test_what_only_rollouts_have_is_neutral(name):
    declared = KNOWN[name]
    assert not declared.online and not declared.kl_in_reward
    assert (declared.sampling, declared.anchor, declared.advantage) == ("all", "old", "")


@EVERY
def test_every_setting_is_one_that_a_run_has_unless_it_is_given(name):
    settings = of(algorithm=name)
    every = dotted(Settings, settings.model_dump(mode="json"))
    assert {key: every[key] for key in KNOWN[name].settings} == KNOWN[name].settings
    assert settings.coefficients == KNOWN[name].defaults


@pytest.mark.parametrize("name", [name for name in KNOWN if "loss.kind" in KNOWN[name].settings])
def test_a_kind_that_is_declared_exists_takes_the_defaults_and_says_if_it_has_a_reference(name):
    found = PREFERENCE_KINDS[KNOWN[name].settings["loss.kind"]]
    assert set(KNOWN[name].defaults) <= {"beta", *found.defaults}
    assert found.reference == ("reference" in KNOWN[name].needs)
    with pytest.raises(UserError, match="loss.kind is read by runs that leave the kind .* open"):
        of(algorithm=name, loss={"kind": "hinge"})


@EVERY
def test_the_file_states_equation_paper_average_and_a_doctest(name):
    module, declared = modules()[name], KNOWN[name]
    assert module.__name__.endswith(f".{name}")
    text = module.__doc__
    cited = re.search(r"Paper: (.*)", text)
    assert re.search(r"\d{4}\.\d{4,5}", declared.paper).group(0) in cited.group(1)
    assert "    ℓ" in text and ">>> " in text and f"rlkern.{declared.loss}(" in text
    assert "the loss is the mean over" in " ".join(text.lower().split())


@EVERY
def test_the_gate_is_named_where_the_loss_is_policy_loss_and_nowhere_else(name):
    known = KNOWN[name]
    assert bool(known.gate) == (known.loss == "policy_loss") and known.gate in {"", *GATES}


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if not known.gate])
def test_policy_loss_says_which_loss_it_is_instead(name):
    one = torch.zeros(1, 1, 2), torch.zeros(1, 1).long(), torch.ones(1), torch.ones(1, 1).bool()
    with pytest.raises(ValueError, match=f"'{name}' learns from .*: use rlkern.{KNOWN[name].loss}"):
        rlkern.policy_loss(*one, algorithm=name)
