# SPDX-License-Identifier: Apache-2.0
"""Answers that a model samples: as data, by whom, in turns, and which of them a step takes."""
