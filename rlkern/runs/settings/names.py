# SPDX-License-Identifier: Apache-2.0
"""The name that was meant; nothing here imports more than Python has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean …" with the most similar name, nothing if none is similar.

    >>> nearest("adition", ["addition", "guess"]), nearest("x", ["addition"])
    ('; did you mean addition', '')
    >>> nearest("gpro", ["gspo", "grpo"]), nearest("GRPO", ["grpo"])   # the same letters
    ('; did you mean grpo', '; did you mean grpo')
    """
    known, name = list(known), name.lower()
    swapped = [each for each in known if sorted(each.lower()) == sorted(name)]
    found = swapped or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}" if found else ""


def nearest_key(key: str, known: Iterable[str]) -> str:
    """Returns "; did you mean …" with the key that was meant: same or similar last word first.

    >>> keys = ["rollout.group_size", "optimizer.lr", "coefficients.clip_low"]
    >>> nearest_key("group_size", keys), nearest_key("optimizer.lrr", keys)
    ('; did you mean rollout.group_size', '; did you mean optimizer.lr')
    >>> nearest_key("learning_rate", keys)   # by its initials
    '; did you mean optimizer.lr'
    """
    known = list(known)
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    if same:
        return f"; did you mean {' or '.join(same)}"
    flat = [name for name in known if name.replace(".", "_") == key]
    if flat:
        return f"; did you mean {flat[0]}"
    close = nearest(key, known)
    if close:
        return close
    short = [n for n in known if _initials(n) == last or n.rpartition(".")[2] == _initials(last)]
    if short:
        return f"; did you mean {' or '.join(short)}"
    by_last = {name.rpartition(".")[2]: name for name in known}
    found = difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
    return f"; did you mean {by_last[found[0]]}" if found else ""


def _initials(key: str) -> str | None:
    """Returns the first letters of the words of a key's last name, None of a single word."""
    words = key.rpartition(".")[2].split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else None
