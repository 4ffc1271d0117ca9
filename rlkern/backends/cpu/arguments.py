# SPDX-License-Identifier: Apache-2.0
"""What rlkern._C takes beside tensors, which it reads and checks itself."""

from functools import lru_cache

import torch

from rlkern import _C  # type: ignore[attr-defined]
from rlkern.backends.eager.gates import GATE_INDEX
from rlkern.backends.eager.kl import KL_INDEX
from rlkern.backends.eager.levels import LEVEL_INDEX
from rlkern.backends.eager.token_objective import Objective

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# A few objectives serve a whole training, unless a controller moves the coefficient of the KL.
@lru_cache(maxsize=64)
def numbered(objective: Objective) -> _C.Objective:
    """Returns an objective as C++ takes it: names become their places in the reference's tables."""
    places = {
        "gate": GATE_INDEX[objective.gate],
        "level": LEVEL_INDEX[objective.level],
        "kl": KL_INDEX[objective.kl],
    }
    return _C.Objective(**{**objective._asdict(), **places})
