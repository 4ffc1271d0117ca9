# SPDX-License-Identifier: Apache-2.0
"""Autograd inside an operator."""

import contextlib
from collections.abc import Iterator

import torch

_INCLUDED = torch._C._dispatch_tls_local_include_set()
_EXCLUDED = torch._C._dispatch_tls_local_exclude_set()


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Records gradients even below the dispatcher's autograd layer, where an operator's body runs.

    The reference takes its derivatives from autograd: they are not a second set of formulas.
    Autocast is off inside: the reference's dtypes are explicit.
    """
    with torch._C._ForceDispatchKeyGuard(_INCLUDED, _EXCLUDED), torch.enable_grad():
        yield
