# SPDX-License-Identifier: Apache-2.0
"""Autograd operations, registered with the dispatcher: schema, fake and autograd in Python."""

from rlkern.ops.group_advantage import group_advantage, group_segments
from rlkern.ops.reverse_scan import reverse_scan
from rlkern.ops.token_logprob import TokenLogprob, token_logprob

__all__ = ["TokenLogprob", "group_advantage", "group_segments", "reverse_scan", "token_logprob"]
