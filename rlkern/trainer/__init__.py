# SPDX-License-Identifier: Apache-2.0
"""The minimal trainer: rollouts, rewards, one loss call, one optimizer step, all of it saved."""

from rlkern.trainer.config import Config
from rlkern.trainer.errors import UserError
from rlkern.trainer.loop import train

__all__ = ["Config", "UserError", "train"]
