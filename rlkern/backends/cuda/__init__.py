# SPDX-License-Identifier: Apache-2.0
"""The cuda backend: CUDA C++ kernels that keep a row on chip, so that it is read once.

These kernels have never run on a GPU. They are compiled for sm_80, sm_90 and sm_100, and the tests
run the same source on a CPU; no speed is known. So they serve only where they are asked for by name
(use_backend("cuda") or RLKERN_BACKEND=cuda) and built (RLKERN_BUILD=cuda), until a conformance run
on a GPU is recorded in benchmarks/results.

They serve rows of any temperature and softcap, but no kept sets, and on GPUs before sm_90 only rows
that fit the shared memory of one multiprocessor.
"""

import torch

from rlkern.backends.cuda.library import DTYPES, error_sentence, load_library
from rlkern.backends.cuda.policy_loss import policy_loss, scale_, scaled
from rlkern.backends.cuda.token_logprob import token_logprob, token_logprob_backward

__all__ = ["policy_loss", "scale_", "scaled", "token_logprob", "token_logprob_backward"]


def unavailable() -> str | None:
    """Returns why this backend cannot serve at all, or None."""
    try:
        loaded = load_library()
    except OSError as error:
        return f"its library is not there (RLKERN_BUILD=cuda builds it with nvcc): {error}"
    index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    major = loaded.rlkern_cuda_major(index)
    if major < 0:
        return f"no GPU that it can use: {error_sentence(-major)}"
    return None if major >= 8 else f"needs compute capability 8.0 or newer, got {major}.x"


def unsupported(stem: str, device: str, dtype: torch.dtype) -> str | None:
    """Returns why this backend cannot serve the call, or None."""
    served = "cpu" if load_library().rlkern_cuda_emulated() else "cuda"
    if device != served:
        return f"serves {served} tensors, not {device}"
    if dtype not in DTYPES:
        return f"{stem} takes {', '.join(str(d).removeprefix('torch.') for d in DTYPES)} here"
    return None
