# SPDX-License-Identifier: Apache-2.0
"""Settings of any command: groups of keys, layers of values, and sentences about what is wrong."""
