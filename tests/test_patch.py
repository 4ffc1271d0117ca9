# SPDX-License-Identifier: Apache-2.0
"""What replaces functions of other trainers: all or nothing, by signature, undone exactly."""

import sys
from types import ModuleType

import pytest

from rlkern import integrations
from rlkern.integrations import PatchError, _patch
from rlkern.integrations._patch import Target, Trainer, signature_of


class Owner:
    def score(self, hidden, temperature=1.0):
        return "theirs"


class Heir(Owner):
    pass


def ours(original, count):
    def score(self, hidden, temperature=1.0):
        count()
        return "ours"

    return score


SIGNATURE = "(self, hidden, temperature=1.0)"


@pytest.fixture
def trainer(monkeypatch):
    """Returns what makes `trl` a trainer of these targets in a version."""
    module = ModuleType("their_module")
    module.Owner, module.Heir = Owner, Heir
    monkeypatch.setitem(sys.modules, "their_module", module)

    def make(*targets: Target, version: str | None = "1.16.0") -> None:
        monkeypatch.setattr(
            _patch, "trainer_of", lambda name: Trainer("trl", ">=1.15,<1.17", targets)
        )
        monkeypatch.setattr(_patch, "installed", lambda trainer: version)

    yield make
    _patch._active.clear()


def target(name: str = "Owner.score", signature: str = SIGNATURE) -> Target:
    return Target("their_module", name, signature, ours)


def test_a_patched_function_counts_its_calls_and_is_put_back(trainer, capsys):
    trainer(target())
    theirs = vars(Owner)["score"]
    with integrations.patch("trl"):
        assert Owner().score(0) == "ours"
        assert integrations.status()[0].calls == {"their_module.Owner.score": 1}
    assert vars(Owner)["score"] is theirs
    assert integrations.status()[0].calls is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "their_module.Owner.score" in said and "1.16.0" in said


def test_an_inherited_function_is_inherited_again(trainer):
    trainer(target("Heir.score"))
    with integrations.patch("trl"):
        assert Heir().score(0) == "ours" and Owner().score(0) == "theirs"
    assert "score" not in vars(Heir)


@pytest.mark.parametrize("version", [None, "1.14.9", "1.17.0", "2.0"])
def test_a_trainer_that_was_not_looked_at_is_refused(trainer, version):
    trainer(target(), version=version)
    with pytest.raises(PatchError, match="trl>=1.15,<1.17") as error:
        integrations.patch("trl")
    assert version is None or version in str(error.value)


@pytest.mark.parametrize("version", ["1.15", "1.15.0", "1.16.3.dev0"])
def test_versions_of_the_range_are_taken(trainer, version):
    trainer(target(), version=version)
    with integrations.patch("trl"):
        pass


@pytest.mark.parametrize(
    "second,expected",
    [
        (target("Owner.forward"), "must have their_module.Owner.forward"),
        (target("Heir.score", "(self, states)"), r"must take \(self, states\).*\(self, hidden"),
        (Target("no_such_module", "f", "()", ours), "No module named 'no_such_module'"),
    ],
)
def test_nothing_is_replaced_unless_all_can_be(trainer, second, expected):
    trainer(target(), second)
    with pytest.raises(PatchError, match=expected):
        integrations.patch("trl")
    assert Owner().score(0) == "theirs"
    assert integrations.status()[0].calls is None


def test_a_second_patch_is_refused_and_the_first_stays(trainer):
    trainer(target())
    with integrations.patch("trl"):
        with pytest.raises(PatchError, match="patched already"):
            integrations.patch("trl")
        assert Owner().score(0) == "ours"


def test_what_somebody_else_has_patched_over_is_left_alone(trainer):
    trainer(target())
    theirs = vars(Owner)["score"]
    integrations.patch("trl")
    mine = vars(Owner)["score"]
    try:
        Owner.score = lambda self, hidden: "another's"
        with pytest.raises(PatchError, match="was replaced after rlkern"):
            integrations.unpatch("trl")
        assert Owner().score(0) == "another's"
        Owner.score = mine
        integrations.unpatch("trl")
        assert vars(Owner)["score"] is theirs
    finally:
        Owner.score = theirs


def test_what_is_not_patched_cannot_be_undone(trainer):
    trainer(target())
    with pytest.raises(PatchError, match="trl is not patched"):
        integrations.unpatch("trl")


def test_annotations_are_no_part_of_a_signature():
    def f(a: int, *, b: str = "x") -> None: ...

    assert signature_of(f) == "(a, *, b='x')"
