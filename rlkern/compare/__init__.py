# SPDX-License-Identifier: Apache-2.0
"""Algorithms side by side: one task, one start, one budget; and the pages made of what they did."""
