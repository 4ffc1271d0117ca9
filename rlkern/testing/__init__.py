# SPDX-License-Identifier: Apache-2.0
"""What the tests and the benchmarks share: one list of cases, and the comparison with float64."""
