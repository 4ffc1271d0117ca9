# SPDX-License-Identifier: Apache-2.0
"""What launches need to know of the device they go to."""

from functools import lru_cache

import torch

# Of 65 536 registers, programs of up to 128 per thread have this many warps at a time.
_WARPS = 16


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


def programs(rows: int, row_bytes: int, warps: int, device: torch.device) -> int:
    """Returns how many programs share the rows, so that a second read of a row finds it in L2.

    Per multiprocessor as many as there are rows that together fill 80 percent of the cache, but at
    least one, and no more than run at a time: one that waits would begin when the others end.

    >>> cpu = torch.device("cpu")
    >>> programs(8192, 2 * 151936, 16, cpu), programs(8192, 2 * 32000, 8, cpu)
    (132, 264)
    >>> programs(70, 2 * 151936, 16, cpu)
    70
    """
    multiprocessors, cache = limits(device)
    fit = cache * 4 // 5 // row_bytes // multiprocessors
    return min(rows, multiprocessors * max(1, min(fit, _WARPS // warps)))
