# SPDX-License-Identifier: Apache-2.0
"""What replaces functions of other trainers: all or nothing, by signature, undone exactly."""

import functools
import importlib
import re
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest

from rlkern import integrations
from rlkern.integrations import PatchError, _patch, _target
from rlkern.integrations._target import Target, Trainer, signature_of


class Owner:
    def score(self, hidden, temperature=1.0):
        return "theirs"

    label = "not a function"
    native = dict.update  # in C, without a readable signature


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
    """Returns what makes `trl`, or what stands on it, a trainer of these targets in a version."""
    trainers: dict[str, Trainer] = {}
    module = ModuleType("their_module")
    module.Owner, module.Heir = Owner, Heir
    monkeypatch.setitem(sys.modules, "their_module", module)
    monkeypatch.setitem(sys.modules, "trl", ModuleType("trl"))

    def make(*targets: Target, version: str | None = "1.16.0", over: str = "") -> None:
        name = "trl-lora-head" if over else "trl"
        trainers[name] = Trainer(name, ">=1.15,<1.17", targets, package="trl", over=over)

        def found(name):
            if version is None:
                raise PackageNotFoundError(name)
            return version

        monkeypatch.setattr(_target, "version", found)

    known = _patch.trainer_of
    monkeypatch.setattr(
        _patch, "trainer_of", lambda name, *op: trainers.get(name) or known(name, *op)
    )
    theirs = vars(Owner)["score"]
    yield make
    _patch._active.clear()
    Owner.score = theirs
    Heir.__dict__.get("score") and delattr(Heir, "score")


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
        (target("Owner.label"), r"Owner.label.*must take.*not a callable"),
        (target("Owner.native"), r"Owner.native.*must take.*no signature"),
    ],
)
def test_nothing_is_replaced_unless_all_can_be(trainer, second, expected):
    trainer(target(), second)
    with pytest.raises(PatchError, match=expected):
        integrations.patch("trl")
    assert Owner().score(0) == "theirs"
    assert integrations.status()[0].calls is None
    assert re.search(expected, integrations.refusal("trl"))


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
    Owner.score = lambda self, hidden: "another's"
    with pytest.raises(PatchError, match="was replaced after rlkern"):
        integrations.unpatch("trl")
    assert Owner().score(0) == "another's"
    Owner.score = mine
    integrations.unpatch("trl")
    assert vars(Owner)["score"] is theirs


def test_another_s_wrapper_around_theirs_is_left_alone(trainer):
    trainer(target())
    theirs = vars(Owner)["score"]
    integrations.patch("trl")
    Owner.score = functools.wraps(theirs)(lambda self, hidden: "another's")
    with pytest.raises(PatchError, match="was replaced after rlkern"):
        integrations.unpatch("trl")
    assert Owner().score(0) == "another's"


def test_what_was_put_back_by_hand_is_patched_anew(trainer, capsys):
    trainer(target(), target("Heir.score"))
    theirs = vars(Owner)["score"]
    integrations.patch("trl")
    Owner.score = theirs
    del Heir.score
    assert integrations.status()[0].calls is None  # nobody is served by rlkern any more
    integrations.unpatch("trl")
    assert capsys.readouterr().err.count("was the trainer's own already") == 2
    assert vars(Owner)["score"] is theirs and "score" not in vars(Heir)
    with integrations.patch("trl"):
        assert Owner().score(0) == "ours"


def test_a_module_that_was_loaded_anew_is_patched_anew(trainer, tmp_path, monkeypatch):
    (tmp_path / "their_file.py").write_text("def score(hidden):\n    return 'theirs'\n")
    monkeypatch.syspath_prepend(tmp_path)
    trainer(Target("their_file", "score", "(hidden)", lambda original, count: lambda x: "ours"))
    integrations.patch("trl")
    module = importlib.reload(sys.modules["their_file"])
    assert module.score(0) == "theirs"
    with integrations.patch("trl"):  # without an unpatch: nothing of the first is left
        assert module.score(0) == "ours"
    assert module.score(0) == "theirs"


def test_what_is_not_patched_cannot_be_undone(trainer):
    trainer(target())
    with pytest.raises(PatchError, match="trl is not patched"):
        integrations.unpatch("trl")
    with pytest.raises(ValueError, match="unpatch: name must be one of trl, verl.*, got 'trlx'"):
        integrations.unpatch("trlx")


def test_a_block_undoes_its_own_patch_and_no_later_one(trainer):
    trainer(target())
    with integrations.patch("trl") as nothing:
        assert nothing is None
        integrations.unpatch("trl")
        again = integrations.patch("trl")
    assert Owner().score(0) == "ours"
    with again:
        pass
    assert Owner().score(0) == "theirs"
    with pytest.raises(PatchError, match="this patch of trl was undone"), again:
        pass


def test_a_block_s_own_error_is_not_hidden_by_what_cannot_be_undone(trainer, capsys):
    trainer(target())
    with pytest.raises(ZeroDivisionError), integrations.patch("trl"):
        Owner.score = lambda self, hidden: "another's"
        1 / 0  # noqa: B018
    assert "was replaced after rlkern" in capsys.readouterr().err


def test_what_cannot_be_undone_at_the_end_of_a_block_is_raised(trainer):
    trainer(target())
    with pytest.raises(PatchError, match="was replaced after"), integrations.patch("trl"):
        Owner.score = lambda self, hidden: "another's"


def test_a_patch_stands_on_another_and_is_undone_before_it(trainer):
    trainer(target())
    trainer(target("Heir.score"), over="trl")
    with pytest.raises(PatchError, match=r"trl-lora-head needs patch\('trl'\) before it"):
        integrations.patch("trl-lora-head")
    with integrations.patch("trl"), integrations.patch("trl-lora-head"):
        with pytest.raises(PatchError, match=r"unpatch\('trl-lora-head'\) first"):
            integrations.unpatch("trl")
        assert Owner().score(0) == Heir().score(0) == "ours"
    assert Owner().score(0) == Heir().score(0) == "theirs"


def test_annotations_are_no_part_of_a_signature():
    def f(a: int, *, b: str = "x") -> None: ...

    assert signature_of(f) == "(a, *, b='x')"


@pytest.mark.parametrize("error", [OSError("no libcudart"), AttributeError("x"), SyntaxError("y")])
@pytest.mark.parametrize("broken", ["trl", "their_module"])
def test_a_trainer_whose_import_fails_is_refused_in_a_sentence(trainer, monkeypatch, error, broken):
    trainer(target())
    whole = importlib.import_module

    def failing(name, *package):
        if name == broken:
            raise error
        return whole(name, *package)

    monkeypatch.setattr(_target.importlib, "import_module", failing)
    sentence = f"{broken} could not be imported: {type(error).__name__}: "
    assert (why := integrations.refusal("trl")) is not None and sentence in why
    with pytest.raises(PatchError, match=sentence):
        integrations.patch("trl")


def test_a_package_that_a_patch_needs_is_named(monkeypatch):
    monkeypatch.setattr(_target, "version", lambda name: "1.16.0")
    monkeypatch.setattr(_target, "find_spec", lambda name: None)
    with pytest.raises(PatchError, match="patch: trl-lora-head needs the package peft"):
        integrations.patch("trl-lora-head")


def test_of_threads_that_patch_at_once_one_succeeds_and_the_others_are_told(trainer):
    def slow(original, count):
        time.sleep(0.02)  # so that the others come meanwhile
        return ours(original, count)

    trainer(Target("their_module", "Owner.score", SIGNATURE, slow))
    start, said = threading.Barrier(8), []

    def run():
        start.wait()
        try:
            integrations.patch("trl")
            said.append("patched")
        except PatchError as error:
            said.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert said.count("patched") == 1
    assert sum("is patched already" in x for x in said) == 7
