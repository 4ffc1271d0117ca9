# SPDX-License-Identifier: Apache-2.0
"""Replaces single functions of other trainers by rlkern's, and puts them back.

All of a trainer's functions or none; one whose signature is not the one that its replacement was
written for is not replaced.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlkern.integrations._target import (
    TRAINERS,
    PatchError,
    Target,
    Trainer,
    checked_version,
    imported,
    installed,
    signature_of,
    trainer_of,
)


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

    def in_place(self) -> bool:
        """Returns whether rlkern's function is what a caller finds."""
        return vars(self.owner).get(self.name) is self.ours

    def taken(self) -> bool:
        """Returns whether somebody else's function stands in the place of ours.

        The trainer's own is nobody else's: put back by hand, or made anew by a reload.
        """
        found = getattr(self.owner, self.name, None)
        wrapped = hasattr(found, "__wrapped__")
        own = not wrapped and _defined(found) == _defined(self.original)
        return not (found is self.ours or found is self.original or own)

    def put_back(self) -> None:
        """Makes the owner as it was; says so on stderr if it already is."""
        if not self.in_place():
            path = self.target.path
            print(f"unpatch: {path} was the trainer's own already, not rlkern's", file=sys.stderr)
        elif self.inherited:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)


_active: dict[str, list[_Replaced]] = {}
_lock = threading.RLock()


def _standing(name: str) -> list[_Replaced] | None:
    """Returns what is replaced in a trainer, None if it is not patched or all of it was put back by
    others, as a reload does."""
    found = _active.get(name)
    return found if found is not None and any(each.in_place() for each in found) else None


def _defined(function: Any) -> tuple[Any, Any]:
    """Returns the module and the name of a function, or of the class that a method is bound to."""
    holder = getattr(function, "__self__", function)
    return getattr(holder, "__module__", None), getattr(holder, "__qualname__", None)


def checked(trainer: Trainer) -> list[_Replaced]:
    """Returns all that is to be replaced; raises PatchError before anything is."""
    found = checked_version("patch", trainer)
    replaced = []
    for target in trainer.targets:
        path = target.called.split(".") if target.called else ()
        try:
            owner, name = target.owner()
            original = getattr(owner, name)
            got = signature_of(functools.reduce(getattr, path, original))
        except (ImportError, AttributeError) as error:
            raise PatchError(
                f"patch: {trainer.distribution} {found} must have"
                f" {'.'.join([target.path, *path])}: {error}"
            ) from error
        except (TypeError, ValueError) as error:  # not callable, or made without a signature
            raise PatchError(
                f"patch: {target.path} of {trainer.distribution} {found} must take"
                f" {target.signature}, for which its replacement was written: {error}"
            ) from error
        if got != target.signature:
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
        imported(trainer.distribution)  # which may load a plugin that patches it
        if _standing(name) is None:
            checked(trainer)
    except PatchError as error:
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
                    written for, patched already, or "trl-lora-head" before "trl"

    >>> patch("liger")
    Traceback (most recent call last):
    ValueError: patch: name must be one of trl, verl, trl-lora-head, got 'liger'
    """
    trainer = trainer_of(name)
    checked_version("patch", trainer)
    imported(trainer.distribution)  # which may load a plugin that patches it
    with _lock:
        if _standing(name) is not None:
            raise PatchError(f"patch: {name} is patched already; unpatch({name!r}) first")
        if trainer.over and _standing(trainer.over) is None:
            raise PatchError(f"patch: {name} needs patch({trainer.over!r}) before it")
        replaced = checked(trainer)
        for each in replaced:
            each.ours = each.target.make(each.original, each.count)
            setattr(each.owner, each.name, each.ours)
        _active[name] = replaced
    paths = ", ".join(each.target.path for each in replaced)
    whole = f"{trainer.distribution} {installed(trainer)}"
    print(f"rlkern serves {paths} of {whole}", file=sys.stderr)
    return _Undoing(name, replaced)


class _Undoing(contextlib.AbstractContextManager):
    """Undoes one patch at the end of a block, and no later one."""

    def __init__(self, name: str, replaced: list[_Replaced]) -> None:
        self.name, self.replaced = name, replaced

    def active(self) -> bool:
        """Returns whether the patch that this undoes is in force."""
        return _active.get(self.name) is self.replaced

    def __enter__(self) -> None:
        if not self.active():
            raise PatchError(f"patch: this patch of {self.name} was undone; patch it again")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not self.active():  # undone inside the block
            return
        try:
            unpatch(self.name)
        except PatchError as refused:
            if error is None:
                raise
            print(refused, file=sys.stderr)  # the block's own error is the one to see


def unpatch(name: str) -> None:
    """Puts a trainer's own functions back.

    Raises PatchError if it is not patched, if another patch stands on it, or if something else has
    taken the place of one of rlkern's functions since: then nothing is changed.
    """
    trainer_of(name, "unpatch")
    with _lock:
        if name not in _active:
            raise PatchError(f"unpatch: {name} is not patched")
        for other in _active:
            if trainer_of(other).over == name:
                raise PatchError(f"unpatch: {other} stands on {name}; unpatch({other!r}) first")
        for each in _active[name]:
            if each.taken():
                raise PatchError(
                    f"unpatch: {each.target.path} was replaced after rlkern had replaced it; undo"
                    " that first"
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
        trainer, replaced = trainer_of(name), _standing(name)
        calls = None if replaced is None else {each.target.path: each.calls for each in replaced}
        found.append(Status(name, installed(trainer), trainer.supported, calls))
    return found
