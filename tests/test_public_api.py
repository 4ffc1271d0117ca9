# SPDX-License-Identifier: Apache-2.0
"""The public names, their arguments and their defaults, as tests/public_api.txt has them.

A change there is one that users notice: say it in CHANGELOG.md. `python tests/test_public_api.py`
writes the file anew.
"""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import rlkern
import rlkern.control
import rlkern.integrations
import rlkern.trainer

FILE = Path(__file__).with_name("public_api.txt")
MODULES = (
    rlkern,
    rlkern.advantage,
    rlkern.aggregate,
    rlkern.sampling,
    rlkern.statistics,
    rlkern.integrations,
    rlkern.control,
    rlkern.trainer,
)


def names_of(module) -> list[str]:
    """Returns what a module offers: __all__, or else the functions and classes of its own."""
    own = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    ]
    return sorted(getattr(module, "__all__", own))


def described(value) -> str:
    """Returns the arguments of a function with their defaults, or the fields of a record."""
    if inspect.isclass(value):
        if hasattr(value, "_fields"):
            defaults = value._field_defaults
            fields = [f"{n}={defaults[n]!r}" if n in defaults else n for n in value._fields]
            return f"[{', '.join(fields)}]"
        if not dataclasses.is_dataclass(value) and issubclass(value, BaseException):
            return ""
    if not callable(value):
        return ""
    parameters = [
        p.replace(annotation=p.empty) for p in inspect.signature(value).parameters.values()
    ]
    said = str(inspect.Signature(parameters))
    # What stands for a value that was not given is an object without a text of its own.
    return re.sub(r"<([\w. ]+?)( object)? at 0x[0-9a-f]+>", r"<\1>", said)


def current() -> list[str]:
    """Returns a line for each public name."""
    lines = []
    for module in MODULES:
        for name in names_of(module):
            value = getattr(module, name)
            keys = keys_of(value().model_dump()) if hasattr(value, "model_fields") else None
            said = [described(value)] if keys is None else [f"().{key}" for key in keys]
            lines += [f"{module.__name__}.{name}{each}" for each in said]
    return lines


def keys_of(settings: dict, before: str = "") -> list[str]:
    """Returns "group.key = default" for every key of a run's settings.

    >>> keys_of({"steps": 1, "data": {"train": None}})
    ['steps = 1', 'data.train = None']
    """
    found = []
    for key, value in settings.items():
        inner = isinstance(value, dict) and value
        found += keys_of(value, f"{before}{key}.") if inner else [f"{before}{key} = {value!r}"]
    return found


def test_public_names_arguments_and_defaults_are_as_written_down():
    known, now = FILE.read_text().splitlines(), current()
    gone, new = sorted(set(known) - set(now)), sorted(set(now) - set(known))
    said = "\n".join(["gone:", *gone, "new:", *new])
    assert known == now, f"the public API changed; if it should, run this file\n{said}"


@pytest.mark.parametrize("part", ("default", "name", "order"))
def test_a_change_is_noticed(part):
    def before(a, b=1.0):
        """Returns nothing."""

    def default(a, b=2.0):
        """Returns nothing."""

    def name(a, c=1.0):
        """Returns nothing."""

    def order(b=1.0, a=0):
        """Returns nothing."""

    assert described(before) == "(a, b=1.0)" != described(locals()[part])


if __name__ == "__main__":
    FILE.write_text("\n".join(current()) + "\n")
