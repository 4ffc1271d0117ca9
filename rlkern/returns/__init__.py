# SPDX-License-Identifier: Apache-2.0
"""Returns and advantages from rewards and values: one fused operation and formulas over the scan.

All of them step from counted token to counted token: what is masked, such as a tool's answer inside
a dialogue, is stepped over. All results are constants, 0 where the mask is False.
"""

from rlkern.returns.advantage import Gae, gae, length_adaptive_lambda
from rlkern.returns.monte_carlo import discounted_return, n_step_return, reward_to_go
from rlkern.returns.off_policy import Vtrace, retrace, vtrace
from rlkern.returns.temporal import lambda_return

__all__ = [
    "Gae",
    "Vtrace",
    "discounted_return",
    "gae",
    "lambda_return",
    "length_adaptive_lambda",
    "n_step_return",
    "retrace",
    "reward_to_go",
    "vtrace",
]
