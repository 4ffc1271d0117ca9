# SPDX-License-Identifier: Apache-2.0
"""Chooses which backend serves a raw operation, and says why.

A backend is a module of functions named as in rlkern.backends.eager, plus
    unavailable() -> str | None                      why it cannot serve at all
    unsupported(stem, device, dtype) -> str | None   why it cannot serve this call
A function it does not have, or a call it does not support, falls to the next for its device. A
backend asked for by name that cannot serve raises.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import torch

ORDER = ("triton", "cpu", "eager")
# Triton's interpreter can serve tensors on the CPU, but only where it is asked for by name.
CHOICES = {"cpu": ("cpu", "eager")}
# These serve only where they are asked for by name, and why.
BY_NAME = {"cuda": "asked for by name only, as its kernels have no recorded run on a GPU"}
NAMES = (*ORDER, *BY_NAME)
MODULES = {
    "triton": "rlkern.backends.triton",
    "cpu": "rlkern.backends.cpu",
    "eager": "rlkern.backends.eager",
    "cuda": "rlkern.backends.cuda",
}
STEMS = (
    "token_logprob",
    "token_logprob_backward",
    "token_objective",
    "policy_loss",
    "scale_",
    "scaled",
    "reverse_scan",
    "gae",
    "group_segments",
    "group_advantage",
    "segment_sum",
    "segment_sum_backward",
    "value_loss",
    "td_loss",
)


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


@cache
def _load(name: str) -> tuple[ModuleType | None, str | None]:
    try:
        module = importlib.import_module(MODULES[name])
    except ImportError as error:
        return None, f"{MODULES[name]} cannot be imported: {error}"
    return module, module.unavailable()


def _refusal(name: str, stem: str, device: str, dtype: torch.dtype) -> str | None:
    module, reason = _load(name)
    if reason is not None or module is None:
        return reason
    if not hasattr(module, stem):
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
    for name in CHOICES.get(device, ORDER) if chosen is None else (chosen,):
        refusal = _refusal(name, stem, device, dtype)
        if refusal is None:
            return name
    raise BackendUnavailable(
        f"{stem}: backend {chosen!r} cannot serve {dtype} on {device}: {refusal}"
    )


def backend_name(stem: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Returns the name of the backend that serves stem for tensors of this device type and dtype.

    >>> with use_backend("eager"):
    ...     backend_name("policy_loss")
    'eager'
    """
    return _resolve(_chosen, stem, device, dtype)


def implementation(stem: str, tensor: torch.Tensor):
    """Returns the function that serves stem for tensors like this one."""
    module, _ = _load(_resolve(_chosen, stem, tensor.device.type, tensor.dtype))
    return getattr(module, stem)


def on_host(device: torch.device) -> bool:
    """Returns whether values there can be looked at without waiting for a device.

    >>> on_host(torch.device("cpu"))
    True
    """
    return device.type == "cpu"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Returns the dtype that matrix products take there now, None where autocast is off.

    >>> autocast_dtype(torch.device("cpu"))
    """
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Makes one backend serve every operation inside the with block; it raises where it cannot.

    >>> with use_backend("numpy"):
    ...     pass
    Traceback (most recent call last):
    ValueError: use_backend: name must be one of triton, cpu, eager, cuda, got 'numpy'
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


def explain(dtype: torch.dtype = torch.float32) -> str:
    """Returns a table: which backend serves each operation on each device, and why not others.

    >>> with use_backend("eager"):
    ...     explain().splitlines()[1].split()
    ['token_logprob', 'cpu', 'eager']
    """
    lines = [f"{'operation':<24}{'device':<8}served by"]
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        for stem in STEMS:
            lines.append(f"{stem:<24}{device:<8}{backend_name(stem, device, dtype)}")
        lines += _refusals(device, dtype)
    return "\n".join(lines)


def _refusals(device: str, dtype: torch.dtype) -> list[str]:
    """Returns one line for each reason that keeps a backend from serving operations on a device."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name in NAMES:
        for stem in STEMS:
            reason = _refusal(name, stem, device, dtype)
            if reason is None and name != _chosen:
                reason = BY_NAME.get(name)
            if reason is not None:
                reasons.setdefault((name, reason), []).append(stem)
    return [
        f"not {name} on {device}: {reason}"
        + ("" if len(stems) == len(STEMS) else f" ({', '.join(stems)})")
        for (name, reason), stems in reasons.items()
    ]
