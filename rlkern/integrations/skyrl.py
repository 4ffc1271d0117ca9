# SPDX-License-Identifier: Apache-2.0
"""SkyRL's policy loss: every algorithm of rlkern by its name. Not run inside SkyRL.

    from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry

    PolicyLossRegistry.register("gmpo", rlkern.integrations.skyrl.policy_loss("gmpo"))

before ray starts, as SkyRL's examples do, and `trainer.algorithm.policy_loss_type=gmpo`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import rlkern
from rlkern.aggregate import token_weight
from rlkern.integrations import _served

NO_TERMS: dict[str, Any] = {"kl_coef": 0.0, "entropy_coef": 0.0}
# Those of off_policy_correction that switch something on; None is off.
_SWITCHES = (
    "tis_ratio_type",
    "sequence_mask_metric",
    "outlier_token_is_threshold_low",
    "outlier_token_is_threshold_high",
    "token_mask_is_threshold_low",
    "token_mask_is_threshold_high",
)


def policy_loss(algorithm: str, **coefficients: Any) -> Callable[..., tuple[Tensor, dict]]:
    """Returns a loss of SkyRL's signature.

    SkyRL divides the advantages so that the sum over tokens is the reduction that it was asked for,
    and adds KL and entropy itself: here both coefficients are 0, and a gate that looks at the size
    of an advantage sees the divided one. Raises ValueError for an algorithm or a coefficient that
    is not one, and the loss does for off_policy_correction, which SkyRL's own losses apply.
    """
    _served.check(algorithm, {**NO_TERMS, **coefficients}, "SkyRL")

    def loss(
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        config: Any,
        loss_mask: Tensor | None = None,
        rollout_logprobs: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        given = config.off_policy_correction
        if on := [name for name in _SWITCHES if getattr(given, name, None) is not None]:
            raise ValueError(
                f"{algorithm}: off_policy_correction must be off with rlkern's loss, got"
                f" {', '.join(on)}"
            )
        mask = log_probs.isfinite() if loss_mask is None else loss_mask.bool()
        out = rlkern.token_objective(
            log_probs.float(), advantages.float(), mask, old_logprob=old_log_probs.float(),
            weight=token_weight(mask, "token_sum"), algorithm=algorithm,
            **{**NO_TERMS, **coefficients},
        )  # fmt: skip
        metrics = rlkern.metrics_dict(out.metrics)
        return out.loss, {"clip_ratio": metrics["clip_ratio/region_mean"]}

    return loss
