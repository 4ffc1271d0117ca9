# SPDX-License-Identifier: Apache-2.0
"""Every class of causal language model that transformers registers, and what becomes of it here."""
