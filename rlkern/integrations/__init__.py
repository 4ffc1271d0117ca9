# SPDX-License-Identifier: Apache-2.0
"""rlkern inside other libraries: what adapts their models and trainers."""
