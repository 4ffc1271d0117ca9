# SPDX-License-Identifier: Apache-2.0
"""What scores answers: functions, and reward models as functions."""
