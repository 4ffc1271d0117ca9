# SPDX-License-Identifier: Apache-2.0
"""Chooses which backend serves a raw operation, and says why.

A backend is a folder here (kernels/triton is installed as one) of functions named as in eager, plus
    unavailable() -> str | None                      why it cannot serve at all
    unsupported(stem, device, dtype) -> str | None   why it cannot serve this call
A function it does not have, or a call it does not support, falls to the next for its device. A
backend asked for by name that cannot serve raises.
"""

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch


class Backend(NamedTuple):
    """A backend, named as its folder.

    devices  types of devices on which it is chosen, None for every type; asked for by name it may
             serve others
    by_name  why it is never chosen, but serves only where it is asked for by name
    """

    name: str
    devices: tuple[str, ...] | None = None
    by_name: str | None = None

    @property
    def module(self) -> str:
        """The dotted name of its folder."""
        return f"{__name__}.{self.name}"

    def passed_over(self, device: str) -> str | None:
        """Returns why it is not chosen on a device, whatever it can do, or None."""
        if self.by_name is not None:
            return f"asked for by name only, as {self.by_name}"
        if self.devices is not None and device not in self.devices:
            return f"asked for by name only: it is chosen on {', '.join(self.devices)}"
        return None


# In this order they are asked. Triton's interpreter can serve tensors on the CPU, too.
BACKENDS = (
    Backend("triton", devices=("cuda",)),
    Backend("cpu", devices=("cpu",)),
    Backend("eager"),
    Backend("cuda", by_name="it serves neither kept sets nor the objective of answers"),
)
_DEFINITION = "eager"
NAMES = tuple(backend.name for backend in BACKENDS)
STEMS = (
    "token_logprob",
    "token_logprob_backward",
    "token_logprob_companions",
    "token_objective",
    "policy_loss",
    "scale_",
    "scaled",
    "reverse_scan",
    "gae",
    "group_segments",
    "group_advantage",
    "value_loss",
    "td_loss",
)


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


@cache
def _load(name: str) -> tuple[ModuleType | None, str | None]:
    (backend,) = (b for b in BACKENDS if b.name == name)
    try:
        module = importlib.import_module(backend.module)
    except ImportError as error:
        return None, f"{backend.module} cannot be imported: {error}"
    return module, module.unavailable()


def _refusal(name: str, stem: str, device: str, dtype: torch.dtype) -> str | None:
    module, reason = _load(name)
    if reason is not None or module is None:
        return reason
    # A file of that name is an attribute of the folder, too, once it is imported.
    if not callable(getattr(module, stem, None)):
        return f"has no {stem}"
    return module.unsupported(stem, device, dtype)


def _chosen_by_environment() -> str | None:
    name = os.environ.get("RLKERN_BACKEND") or None
    if name is not None and name not in NAMES:
        raise ValueError(f"RLKERN_BACKEND must be one of {', '.join(NAMES)}, got {name!r}")
    return name


_chosen: str | None = _chosen_by_environment()


@cache
def _resolve(chosen: str | None, stem: str, device: str, dtype: torch.dtype) -> str:
    if chosen is not None:
        refusal = _refusal(chosen, stem, device, dtype)
        if refusal is None:
            return chosen
        raise BackendUnavailable(
            f"{stem}: backend {chosen!r} cannot serve {dtype} on {device}: {refusal}"
        )
    asked = [b.name for b in BACKENDS if b.passed_over(device) is None]
    return next(name for name in asked if _refusal(name, stem, device, dtype) is None)


def backend_name(stem: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Returns the name of the backend that serves stem for tensors of this device type and dtype.

    >>> with use_backend("eager"):
    ...     backend_name("policy_loss")
    'eager'
    """
    return _resolve(_chosen, stem, device, dtype)


def implementation(stem: str, tensor: torch.Tensor):
    """Returns the function that serves stem for tensors like this one."""
    name = _resolve(_chosen, stem, tensor.device.type, tensor.dtype)
    if name == _DEFINITION:
        _say_what_is_missing(_chosen, tensor.device.type)
    module, _ = _load(name)
    return getattr(module, stem)


@cache  # once for each device, whatever is called
def _say_what_is_missing(chosen: str | None, device: str) -> None:
    """Warns that the definitions serve because the backend that is made for a device cannot be had
    here; nothing if they were asked for."""
    made = [b.name for b in BACKENDS if b.devices is not None and device in b.devices]
    missing = [f"{name} cannot serve: {_load(name)[1]}" for name in made if _load(name)[1]]
    if chosen is None and missing:
        warnings.warn(
            f"rlkern: eager PyTorch serves on {device}, slower and with more memory, because"
            f" backend {'; '.join(missing)} (RLKERN_BACKEND=eager says that this is meant)",
            stacklevel=2,
        )


def on_host(device: torch.device) -> bool:
    """Returns whether values there can be looked at without waiting for a device.

    >>> on_host(torch.device("cpu"))
    True
    """
    return device.type == "cpu"


def has_memory(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor has values: those on the meta device have a shape alone.

    >>> has_memory(torch.zeros(2, device="meta"))
    False
    """
    return not tensor.is_meta


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Makes one backend serve every operation inside the with block; it raises where it cannot.

    >>> with use_backend("numpy"):  # doctest: +ELLIPSIS
    ...     pass
    Traceback (most recent call last):
    ValueError: use_backend: name must be one of triton, ..., got 'numpy'
    """
    global _chosen
    if name not in NAMES:
        raise ValueError(f"use_backend: name must be one of {', '.join(NAMES)}, got {name!r}")
    _, reason = _load(name)
    if reason is not None:
        raise BackendUnavailable(f"use_backend: {name!r} cannot serve here: {reason}")
    previous, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = previous


class Table(str):
    """Text that a prompt shows as it is, without quotes and escapes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def explain(dtype: torch.dtype = torch.float32) -> str:
    """Returns a table: which backend serves each operation on each device, and why not others.

    >>> with use_backend("eager"):
    ...     explain().splitlines()[1].split()
    ['token_logprob', 'cpu', 'eager']
    """
    lines = [f"{'operation':<26}{'device':<8}served by"]
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        for stem in STEMS:
            lines.append(f"{stem:<26}{device:<8}{backend_name(stem, device, dtype)}")
        lines += _refusals(device, dtype)
    return Table("\n".join(lines))


def _refusals(device: str, dtype: torch.dtype) -> list[str]:
    """Returns one line for each reason that keeps a backend from serving operations on a device."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for backend in BACKENDS:
        for stem in STEMS:
            serving = backend_name(stem, device, dtype)
            if serving == backend.name:
                continue
            reason = _refusal(backend.name, stem, device, dtype) or backend.passed_over(device)
            if _chosen is not None:
                reason = reason or f"{serving} is asked for by name"
            reason = reason or f"{serving} is asked first"
            reasons.setdefault((backend.name, reason), []).append(stem)
    return [
        f"not {name} on {device}: {reason}"
        + ("" if len(stems) == len(STEMS) else f" ({', '.join(stems)})")
        for (name, reason), stems in reasons.items()
    ]
