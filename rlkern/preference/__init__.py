# SPDX-License-Identifier: Apache-2.0
"""Losses of preferences: pairs of answers, answers judged alone, and reward models."""

from rlkern.preference.alone import kto_loss, mismatched_kl
from rlkern.preference.pairs import preference_loss, reward_model_loss
from rlkern.preference.rows import PREFERENCE_METRICS, preference_metrics_dict
from rlkern.preference.sequence import mean_sequence_logprob, sequence_logprob

__all__ = [
    "PREFERENCE_METRICS",
    "kto_loss",
    "mean_sequence_logprob",
    "mismatched_kl",
    "preference_loss",
    "preference_metrics_dict",
    "reward_model_loss",
    "sequence_logprob",
]
