# SPDX-License-Identifier: Apache-2.0
"""From log-probabilities of tokens to those of sequences."""

from torch import Tensor

from rlkern.ops.segment_sum import segment_sum


def sequence_logprob(logprob: Tensor, mask: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """Returns the log-probability of each sequence: Σ_t logprob_t over its counted tokens.

    Added in float64, rounded once. Padded and packed input give the same bits.

    Arguments
        logprob     (B, T) float, or (N,) with cu_seqlens; anything where mask is False
        mask        of the same shape, bool, True counts
        cu_seqlens  (B + 1,) int: sequence b lies in cu_seqlens[b] to cu_seqlens[b + 1]
    Returns
        (B,) float32, float64 for float64; 0 for a sequence without a counted token
    Raises
        TypeError, ValueError  for an argument of the wrong dtype, shape or device
        RuntimeError           on double backward
    Gradient
        to logprob

    >>> logprob = torch.tensor([[-1.0, -2.0], [-3.0, torch.nan]])
    >>> sequence_logprob(logprob, torch.tensor([[True, True], [True, False]])).tolist()
    [-3.0, -3.0]
    """
    return segment_sum("sequence_logprob", logprob, mask, cu_seqlens)[0]


def mean_sequence_logprob(
    logprob: Tensor, mask: Tensor, *, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Returns the mean log-probability per counted token of each sequence.

    Arguments, gradient and errors are those of sequence_logprob.

    >>> logprob, cu_seqlens = torch.tensor([-1.0, -2.0, -5.0]), torch.tensor([0, 2, 3])
    >>> mean_sequence_logprob(logprob, torch.ones(3).bool(), cu_seqlens=cu_seqlens).tolist()
    [-1.5, -5.0]
    """
    total, count = segment_sum("mean_sequence_logprob", logprob, mask, cu_seqlens)
    return total / count.clamp(min=1)
