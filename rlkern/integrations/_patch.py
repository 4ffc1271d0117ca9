# SPDX-License-Identifier: Apache-2.0
"""Replaces single functions of other trainers by rlkern's, and puts them back.

A trainer is a file beside this one with a `TRAINER`: the functions it replaces and, of each, the
signature it was written for. A function whose signature is another one is not replaced.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

TRAINERS = ("trl", "verl", "trl-lora-head")


def kept(original: Any, count: Callable[[], None]) -> Any:
    """Returns the function itself: for one that is only called or overridden."""
    return original


class Target(NamedTuple):
    """A function that is replaced.

    module, name  where it is looked up when it is called; name may be Class.method
    signature     what `signature_of` gives of the function that was copied
    make          (original, count) -> what takes its place, which calls count with every use
    called        the attribute of the original whose signature counts, "" for the original itself
    """

    module: str
    name: str
    signature: str
    make: Callable[[Any, Callable[[], None]], Any] = kept
    called: str = ""

    @property
    def path(self) -> str:
        """The dotted name of the function."""
        return f"{self.module}.{self.name}"

    def owner(self) -> tuple[Any, str]:
        """Returns the object that holds the function, and its name there."""
        *holders, name = self.name.split(".")
        return functools.reduce(getattr, holders, importlib.import_module(self.module)), name


class Trainer(NamedTuple):
    """A trainer that functions are replaced in, and its versions that were looked at.

    name       what `patch` calls it, and with underscores the module that has this
    versions   as pip takes them: >=1.15,<1.17
    package    what pip calls it, "" for its name
    unplugged  of a trainer that loads rlkern by itself: returns why it did not, None if it did
    """

    name: str
    versions: str
    targets: tuple[Target, ...]
    package: str = ""
    unplugged: Callable[[], str | None] | None = None

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return self.package or self.name

    @property
    def supported(self) -> str:
        """The versions that are supported, as pip takes them."""
        return f"{self.distribution}{self.versions}"


class PatchError(RuntimeError):
    """A function of another trainer cannot be replaced, or not be put back."""


@dataclass
class _Replaced:
    """A function that is replaced now."""

    target: Target
    owner: Any
    name: str
    original: Any
    ours: Any = None
    calls: int = 0
    inherited: bool = field(init=False)

    def __post_init__(self) -> None:
        self.inherited = self.name not in vars(self.owner)

    def count(self) -> None:
        """Counts a use."""
        self.calls += 1

    def put_back(self) -> None:
        """Makes the owner as it was."""
        if self.inherited:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)


_active: dict[str, list[_Replaced]] = {}


def signature_of(function: Any) -> str:
    """Returns the parameters of a function and their defaults; annotations are left out.

    >>> def f(a, *, b: int = 2): ...
    >>> signature_of(f)
    '(a, *, b=2)'
    """
    found = inspect.signature(function)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    bare = found.replace(parameters=plain, return_annotation=inspect.Signature.empty)
    return str(bare)


def trainer_of(name: str) -> Trainer:
    """Returns what is replaced in a trainer.

    >>> trainer_of("verl").name
    'verl'
    """
    if name not in TRAINERS:
        raise ValueError(f"patch: name must be one of {', '.join(TRAINERS)}, got {name!r}")
    return importlib.import_module(f"rlkern.integrations.{name.replace('-', '_')}").TRAINER


def installed(trainer: Trainer) -> str | None:
    """Returns the installed version of a trainer, or None."""
    try:
        return version(trainer.distribution)
    except PackageNotFoundError:
        return None


def patched(name: str) -> bool:
    """Returns whether a trainer is patched now."""
    return name in _active


def checked_version(op: str, trainer: Trainer) -> str:
    """Returns the installed version of a trainer; raises PatchError if it was not looked at."""
    found = installed(trainer)
    if found is None:
        raise PatchError(f"{op}: {trainer.distribution} must be installed ({trainer.supported})")
    from packaging.specifiers import SpecifierSet  # which each of the trainers needs

    if not SpecifierSet(trainer.versions).contains(found, prereleases=True):
        raise PatchError(
            f"{op}: {trainer.distribution} must be {trainer.supported}, whose functions were"
            f" looked at, got {found}"
        )
    return found


def checked(trainer: Trainer) -> list[_Replaced]:
    """Returns all that is to be replaced; raises PatchError before anything is."""
    found = checked_version("patch", trainer)
    replaced = []
    for target in trainer.targets:
        try:
            owner, name = target.owner()
            original = getattr(owner, name)
            path = target.called.split(".") if target.called else ()
            called = functools.reduce(getattr, path, original)
        except (ImportError, AttributeError) as error:
            raise PatchError(
                f"patch: {trainer.distribution} {found} must have {target.path}: {error}"
            ) from error
        if (got := signature_of(called)) != target.signature:
            raise PatchError(
                f"patch: {target.path} of {trainer.distribution} {found} must take"
                f" {target.signature}, for which its replacement was written, got {got}"
            )
        replaced.append(_Replaced(target, owner, name, original))
    return replaced


def refusal(name: str) -> str | None:
    """Returns why a trainer cannot be patched here, or None if it can or is; imports it, which
    takes seconds."""
    trainer = trainer_of(name)
    try:
        checked_version("patch", trainer)
        # A trainer may load a plugin that patches it.
        importlib.import_module(trainer.distribution)
        if name not in _active:
            checked(trainer)
    except (PatchError, ImportError) as error:
        return str(error)
    return None


def patch(name: str) -> contextlib.AbstractContextManager[None]:
    """Makes a trainer score tokens by rlkern's kernels, and returns what undoes it.

        rlkern.integrations.patch("trl")            # from here on
        with rlkern.integrations.patch("trl"):      # or in this block
            trainer.train()

    The trainer keeps its losses, options and metrics. What is replaced is said once on stderr, and
    `status` counts the calls. Nothing is replaced unless all of it can be.

    Arguments
        name  "trl", "verl", or "trl-lora-head" for LoRA on the head inside "trl"
    Raises
        PatchError  if the trainer is not installed, of a version or a signature that this was not
                    written for, or patched already

    >>> patch("liger")
    Traceback (most recent call last):
    ValueError: patch: name must be one of trl, verl, trl-lora-head, got 'liger'
    """
    trainer = trainer_of(name)
    # A trainer may load a plugin that patches it.
    with contextlib.suppress(ImportError):  # which is said of the target that is missed
        importlib.import_module(trainer.distribution)
    if name in _active:
        raise PatchError(f"patch: {name} is patched already; unpatch({name!r}) first")
    replaced = checked(trainer)
    for each in replaced:
        each.ours = each.target.make(each.original, each.count)
        setattr(each.owner, each.name, each.ours)
    _active[name] = replaced
    paths = ", ".join(each.target.path for each in replaced)
    whole = f"{trainer.distribution} {installed(trainer)}"
    print(f"rlkern serves {paths} of {whole}", file=sys.stderr)
    return _undoing(name)


@contextlib.contextmanager
def _undoing(name: str) -> Iterator[None]:
    try:
        yield
    finally:
        unpatch(name)


def unpatch(name: str) -> None:
    """Puts a trainer's own functions back.

    Raises PatchError if it is not patched, or if something else has taken the place of one of
    rlkern's functions since: then nothing is changed.
    """
    if name not in _active:
        raise PatchError(f"unpatch: {name} is not patched")
    for each in _active[name]:
        if vars(each.owner).get(each.name) is not each.ours:
            raise PatchError(
                f"unpatch: {each.target.path} was replaced after rlkern had replaced it; undo that"
                " first"
            )
    for each in _active.pop(name):
        each.put_back()


class Status(NamedTuple):
    """What a trainer is to rlkern.

    version    as installed, None if it is not
    supported  the versions that can be patched, in words
    calls      uses of each replaced function by its dotted name; None if it is not patched
    """

    name: str
    version: str | None
    supported: str
    calls: dict[str, int] | None


def status() -> list[Status]:
    """Returns of each trainer which version is installed, and what was called if it is patched.

    >>> [each.name for each in status()]
    ['trl', 'verl', 'trl-lora-head']
    """
    found = []
    for name in TRAINERS:
        trainer, replaced = trainer_of(name), _active.get(name)
        calls = None if replaced is None else {each.target.path: each.calls for each in replaced}
        found.append(Status(name, installed(trainer), trainer.supported, calls))
    return found
