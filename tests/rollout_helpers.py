# SPDX-License-Identifier: Apache-2.0
"""How the trainer scores rows, without a run around it."""

from trainer_helpers import settings

from rlkern.trainer.models.policy import token_logprob, without_gradient
from rlkern.trainer.processes.world import World


def score(policy, rows, *, share=True, temperature=1.0, parts=3):
    """Returns the log-probabilities (B, T) of the tokens of rows, found in so many parts."""
    asked = settings(rollout__temperature=temperature, memory__share_prompts=share)
    return without_gradient(
        lambda part: token_logprob(policy, part, asked), rows, world=World(), parts=parts
    )
