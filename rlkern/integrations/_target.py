# SPDX-License-Identifier: Apache-2.0
"""Which functions of a trainer rlkern replaces, and which versions of it were looked at.

A trainer is a file beside this one with a `TRAINER`: the functions it replaces and, of each, the
signature it was written for.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
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
        return functools.reduce(getattr, holders, imported(self.module)), name


class Trainer(NamedTuple):
    """A trainer that functions are replaced in, and its versions that were looked at.

    name       what `patch` calls it, and with underscores the module that has this
    versions   as pip takes them: >=1.15,<1.17
    package    what pip calls it, "" for its name
    over       the trainer that must be patched before this and put back after it, "" for none
    needs      packages that must be there beside it
    unplugged  of a trainer that loads rlkern by itself: returns why it did not, None if it did
    """

    name: str
    versions: str
    targets: tuple[Target, ...]
    package: str = ""
    over: str = ""
    needs: tuple[str, ...] = ()
    unplugged: Callable[[], str | None] | None = None

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return self.package or self.name

    @property
    def supported(self) -> str:
        """The versions that are supported, as pip takes them."""
        return f"{self.distribution}{self.versions}"


def imported(name: str) -> Any:
    """Returns a module; Raises PatchError whatever its import raises: what a trainer imports may be
    broken in any way."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise PatchError(
            f"{name} could not be imported: {type(error).__name__}: {error}"
        ) from error


class PatchError(RuntimeError):
    """A function of another trainer cannot be replaced, or not be put back."""


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


def trainer_of(name: str, op: str = "patch") -> Trainer:
    """Returns what is replaced in a trainer.

    >>> trainer_of("verl").name
    'verl'
    """
    if name not in TRAINERS:
        raise ValueError(f"{op}: name must be one of {', '.join(TRAINERS)}, got {name!r}")
    return importlib.import_module(f"rlkern.integrations.{name.replace('-', '_')}").TRAINER


def installed(trainer: Trainer) -> str | None:
    """Returns the installed version of a trainer, or None."""
    try:
        return version(trainer.distribution)
    except PackageNotFoundError:
        return None


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
    for name in trainer.needs:
        if find_spec(name) is None:
            raise PatchError(f"{op}: {trainer.name} needs the package {name}")
    return found
