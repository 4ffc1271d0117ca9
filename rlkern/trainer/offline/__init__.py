# SPDX-License-Identifier: Apache-2.0
"""Learning from given answers: right ones, pairs, judged ones, and reward models."""
