# SPDX-License-Identifier: Apache-2.0
"""rlkern inside other libraries: `patch` for their trainers, `fused_head` for their models."""

from rlkern.integrations._patch import Status, patch, refusal, status, unpatch
from rlkern.integrations._target import PatchError, trainer_of

__all__ = ["PatchError", "Status", "patch", "refusal", "status", "trainer_of", "unpatch"]
