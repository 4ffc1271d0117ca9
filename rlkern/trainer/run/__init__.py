# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: what is in it, and how it stays whole."""
