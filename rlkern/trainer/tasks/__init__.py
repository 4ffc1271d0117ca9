# SPDX-License-Identifier: Apache-2.0
"""Tasks: questions, right answers, and environments that reply."""
