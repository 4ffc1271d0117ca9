# SPDX-License-Identifier: Apache-2.0
"""Benchmarks anyone can run again: `make bench` on a CPU, `make gpu` on a GPU machine."""
