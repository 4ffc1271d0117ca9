# SPDX-License-Identifier: Apache-2.0
"""A reward that differs within almost every group, even for an untrained model."""


def even_digits(prompts, completions):
    """Returns the share of even digits in each completion."""
    return [sum(c in "02468" for c in text) / max(1, len(text)) for text in completions]


def right_digits(prompts, completions, answer):
    """Returns the share of the answer's characters that each completion has in their places."""
    pairs = zip(completions, answer, strict=True)
    return [sum(a == b for a, b in zip(text, right)) / len(right) for text, right in pairs]
