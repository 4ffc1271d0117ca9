# SPDX-License-Identifier: Apache-2.0
"""Which file of the package reads which key of the settings, seen at run time."""

import contextlib
import sys
from collections import defaultdict
from pathlib import Path

import rlkern
from rlkern.runs.settings.group import Group
from rlkern.runs.settings.layers import classes
from rlkern.trainer.settings.schema import Settings

PACKAGE = str(Path(rlkern.__file__).parent)


def places(kind=Settings, prefix=""):
    """Returns the dotted key of every (class, field) of the settings."""
    found = {}
    for name, info in kind.model_fields.items():
        below = classes(info.annotation)
        if not below:
            found[kind, name] = f"{prefix}{name}"
        for each in below:
            found.update(places(each, f"{prefix}{name}."))
    return found


@contextlib.contextmanager
def recorded():
    """Yields a mapping that fills up: by key, the files of the package that read it."""
    known, readers = places(), defaultdict(set)
    plain = Group.__getattribute__

    def reads(self, name):
        key = known.get((type(self), name))
        if key is not None:
            file = sys._getframe(1).f_code.co_filename
            within = file.removeprefix(f"{PACKAGE}/")
            if within != file and "settings/" not in within:
                readers[key].add(within)
        return plain(self, name)

    Group.__getattribute__ = reads
    try:
        yield readers
    finally:
        del Group.__getattribute__
