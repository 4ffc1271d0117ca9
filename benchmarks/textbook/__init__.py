# SPDX-License-Identifier: Apache-2.0
"""Figures of Sutton & Barto, Reinforcement Learning, 2nd ed., redrawn from runs of
rlkern.control."""
