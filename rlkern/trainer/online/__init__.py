# SPDX-License-Identifier: Apache-2.0
"""Learning from own answers: rewards, scores and advantages of a rollout, then updates."""
