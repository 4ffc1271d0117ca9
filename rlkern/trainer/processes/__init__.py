# SPDX-License-Identifier: Apache-2.0
"""A run of several processes: who does what, and how gradients are added."""
