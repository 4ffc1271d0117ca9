# SPDX-License-Identifier: Apache-2.0
"""Other projects' formulas, written out in eager torch, for the rows of docs/conventions.md.

Each module holds ROWS of one project, or a part of it: the text of the row's first cell, and what
the project computes there. None of them calls rlkern. Numbers that only guard a division (1e-8
added to a count) are left out.
"""
