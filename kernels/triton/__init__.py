# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: the reference's functions on NVIDIA and AMD GPUs.

Held to the reference on an H200 (benchmarks/results/nvidia_h200-tests.txt), where launch shapes
were measured; elsewhere in Triton's interpreter, and as the PTX of sm_80 and sm_90, executed by an
emulator on the CPU. For sm_100 and gfx942 the kernels are compiled, and have not run. The softcap's
tangent and the log-sum-exp of a row of nothing but −inf are newer than the run on the H200.
"""

import torch
import triton

from rlkern.backends.triton._interpreter import round_as_gpus
from rlkern.backends.triton.gae import gae
from rlkern.backends.triton.group_advantage import group_advantage, group_segments
from rlkern.backends.triton.policy_loss import policy_loss, policy_loss_kernel
from rlkern.backends.triton.reverse_scan import reverse_scan
from rlkern.backends.triton.scale import scale_, scaled
from rlkern.backends.triton.token_logprob import token_logprob, token_logprob_backward
from rlkern.backends.triton.token_logprob_companions import token_logprob_companions
from rlkern.backends.triton.token_objective import token_objective
from rlkern.backends.triton.value_loss import value_loss

__all__ = [
    "gae",
    "group_advantage",
    "group_segments",
    "policy_loss",
    "reverse_scan",
    "scale_",
    "scaled",
    "token_logprob",
    "token_logprob_backward",
    "token_logprob_companions",
    "token_objective",
    "value_loss",
]

# The decorator decides at import whether a kernel is compiled or interpreted.
INTERPRETED = not isinstance(policy_loss_kernel, triton.JITFunction)
if INTERPRETED:
    round_as_gpus()
_LOGITS = (torch.float16, torch.bfloat16, torch.float32)
_DTYPES = {
    "token_logprob": _LOGITS,
    "token_logprob_backward": _LOGITS,
    "token_logprob_companions": _LOGITS,
    "policy_loss": _LOGITS,
    "scale_": _LOGITS,
    "scaled": _LOGITS,
}


def unavailable() -> str | None:
    """Returns why this backend cannot serve at all, or None."""
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "no GPU (TRITON_INTERPRET=1, set before Python starts, interprets on the CPU)"
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"needs compute capability 8.0 or newer, got {major}.{minor}"


def unsupported(stem: str, device: str, dtype: torch.dtype) -> str | None:
    """Returns why this backend cannot serve the call, or None."""
    allowed = _DTYPES.get(stem, (torch.float32,))
    if dtype not in allowed:
        return f"{stem} takes {', '.join(str(d).removeprefix('torch.') for d in allowed)} here"
    if device == "cuda" or (device == "cpu" and INTERPRETED):
        return None
    if device == "cpu":
        return "CPU tensors only under TRITON_INTERPRET=1, which interprets the kernels"
    return f"no {device} tensors"
