# SPDX-License-Identifier: Apache-2.0
"""rlkern inside other libraries: `patch` for their trainers, `fused_head` for their models."""

from rlkern.integrations._patch import (
    PatchError,
    Status,
    patch,
    refusal,
    status,
    trainer_of,
    unpatch,
)

__all__ = ["PatchError", "Status", "patch", "refusal", "status", "trainer_of", "unpatch"]
