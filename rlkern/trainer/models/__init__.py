# SPDX-License-Identifier: Apache-2.0
"""Policies: made here, unpacked from a package or read from a folder, and adapters on them."""
