# SPDX-License-Identifier: Apache-2.0
"""Autograd inside an operator."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def _of_a_new_thread() -> tuple[torch._C.DispatchKeySet, torch._C.DispatchKeySet]:
    """Returns what the dispatcher includes and excludes where nothing was switched on or off: the
    first call may import this file inside inference_mode, autocast or an operator."""
    sets = torch._C._dispatch_tls_local_include_set, torch._C._dispatch_tls_local_exclude_set
    with ThreadPoolExecutor(1) as pool:
        included, excluded = pool.map(lambda read: read(), sets)
    return included, excluded


_INCLUDED, _EXCLUDED = _of_a_new_thread()


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Records gradients even below the dispatcher's autograd layer, where an operator's body runs.

    The reference takes its derivatives from autograd: they are not a second set of formulas.
    Autocast is off inside: the reference's dtypes are explicit. So is inference mode; what was made
    in it has to be recordable() first.
    """
    inside = torch._C._ForceDispatchKeyGuard(_INCLUDED, _EXCLUDED)
    with torch.inference_mode(False), inside, torch.enable_grad():
        yield


def recordable(x: Tensor) -> Tensor:
    """Returns what autograd can save: a copy of a tensor of inference mode, else the same one."""
    return x.clone() if x.is_inference() else x
