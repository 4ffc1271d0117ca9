# SPDX-License-Identifier: Apache-2.0
"""The cuda backend: CUDA C++ kernels that keep a row on chip, so that it is read once.

They were held to the reference on an H200 (benchmarks/results/nvidia_h200-tests.txt). The tests run
the same source on a CPU, and execute what nvcc makes of it for sm_80; for sm_100 it is compiled
only. On the H200 they are faster than Triton's for loss and gradient in place, slower for the loss
alone and for log-probabilities (docs/benchmarks.md). They serve rows of any temperature and
softcap, but neither kept sets nor the objective of answers, and on GPUs before sm_90 only rows that
fit the shared memory of one multiprocessor: so they are not chosen, but asked for by name
(use_backend("cuda") or RLKERN_BACKEND=cuda), where they are built (RLKERN_BUILD=cuda).
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
