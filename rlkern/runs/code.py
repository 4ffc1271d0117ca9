# SPDX-License-Identifier: Apache-2.0
"""Functions that a person names: `my_reward.py:score`, or `module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rlkern.runs.errors import UserError

_SUFFIX = ".py"


def is_code(name: str) -> bool:
    """Returns whether a name has the form of a function in a file or in a module.

    >>> is_code("my_reward.py:score"), is_code("package.module:score"), is_code("runs/rm")
    (True, True, False)
    """
    place, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and (in_file(name) or _is_module(place))


def _is_module(place: str) -> bool:
    return all(part.isidentifier() for part in place.split("."))


def in_file(name: str) -> bool:
    """Returns whether a name is that of a function in a file."""
    return name.partition(":")[0].endswith(_SUFFIX) and ":" in name


def unplaced(name: str) -> str:
    """Returns a name without the folders of its file, by which two runs may know the same file.

    >>> unplaced("/data/my_reward.py:score"), unplaced("module:score")
    ('my_reward.py:score', 'module:score')
    """
    return Path(name).name if in_file(name) else name


def located(name: str, beside: str) -> str:
    """Returns a name with the absolute path of its file, which lies where one stands or else where
    the file `beside` does; a name that is none of a file, or of none that is there, as it is."""
    if not in_file(name):
        return name
    place, _, attribute = name.rpartition(":")
    folders = [Path(), *([Path(beside).parent] if beside and Path(beside).is_file() else [])]
    found = (folder / Path(place).expanduser() for folder in folders)
    path = next((path for path in found if path.is_file()), None)
    return name if path is None else f"{path.resolve()}:{attribute}"


def load(name: str, key: str) -> Any:
    """Returns what a name names; Raises UserError, which begins with the key and the name, if there
    is no such file, module or attribute, or if running it fails."""
    place, _, attribute = name.rpartition(":")
    if in_file(name) and not Path(place).is_file():
        raise UserError(f"{key} {name!r}: there is no file {place} (from {Path.cwd()})")
    try:
        module = _of_file(Path(place)) if in_file(name) else _of_module(place)
    except ImportError as error:
        raise UserError(f"{key} {name!r} cannot be imported: {error}") from error
    except Exception as error:
        raise UserError(
            f"{key} {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        known = [n for n, x in vars(module).items() if callable(x) and not n.startswith("_")]
        has = f"; it has {', '.join(known)}" if in_file(name) and known else ""
        raise UserError(
            f"{key} {name!r} cannot be imported: {place} has no {attribute!r}{has}"
        ) from None


def _of_module(place: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(place)


def _of_file(path: Path) -> ModuleType:
    """Returns the module of a file, run once for each place and content; its folder is where its
    own imports are looked for."""
    path = path.resolve()
    mark = hashlib.sha256(f"{path}\0{digest(path)}".encode()).hexdigest()
    name = f"_rlkern_{path.stem}_{mark[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a file that ends in .py has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(*names: str) -> dict[str, str]:
    """Returns the SHA-256 of the files of functions, by their names without folders."""
    found = {}
    for name in filter(is_code, names):
        place = Path(name.rpartition(":")[0]) if in_file(name) else _source(name)
        if place is not None and place.is_file():
            found[unplaced(name)] = digest(place)
    return found


def _source(name: str) -> Path | None:
    """Returns the file of a module that was loaded before, None for one without."""
    module = sys.modules.get(name.partition(":")[0])
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def described(error: BaseException, function: Callable) -> str:
    """Returns what a function raised and where: the last line of its own file on the way to the
    error, or else of any."""
    inner = inspect.unwrap(function)
    inner = inner if hasattr(inner, "__code__") else inspect.unwrap(type(inner).__call__)
    code = getattr(inner, "__code__", None)
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [place for place in frames if code is not None and place[0] == code.co_filename]
    what = f"raised {type(error).__name__}: {error}"
    # Where it could not even be called, the last frame is the trainer's.
    return f"{what} ({_short(own[-1][0])}, line {own[-1][1]})" if own else what


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
