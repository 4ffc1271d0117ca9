# SPDX-License-Identifier: Apache-2.0
"""What every loss returns."""

from typing import NamedTuple

from torch import Tensor


class LossOutput(NamedTuple):
    """A scalar loss, and its metrics as one device vector (read it with metrics_dict)."""

    loss: Tensor
    metrics: Tensor
