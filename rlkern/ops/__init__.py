# SPDX-License-Identifier: Apache-2.0
"""The operations: a file defines the public function of its name; those with _ what they share."""
