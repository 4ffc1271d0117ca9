# SPDX-License-Identifier: Apache-2.0
"""What launches need to know of the device they go to."""

from functools import lru_cache

import torch


@lru_cache
def limits(device: torch.device) -> tuple[int, int]:
    """Returns (multiprocessors, bytes of L2 cache); those of an H100 where there is no device.

    >>> limits(torch.device("cpu"))
    (132, 52428800)
    """
    if device.index is None:  # interpreted, or compiled ahead of time
        return 132, 50 << 20
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.L2_cache_size
