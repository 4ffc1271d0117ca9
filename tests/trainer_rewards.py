# SPDX-License-Identifier: Apache-2.0
"""A reward that differs within almost every group, even for an untrained model."""


def even_digits(prompts, completions):
    """Returns the share of even digits in each completion."""
    return [sum(c in "02468" for c in text) / max(1, len(text)) for text in completions]
