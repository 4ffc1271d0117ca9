# SPDX-License-Identifier: Apache-2.0
"""What each figure is there to show, as a few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.textbook.games import roughness
from benchmarks.textbook.walks import best


def of_6_2(curves: list[dict]) -> dict[str, Any]:
    """Returns the RMS error after the last episode by method and step size."""
    return {f"{each['method']}, α = {each['alpha']:g}": each["rms"][-1] for each in curves}


def of_7_2(curves: list[dict]) -> dict[str, Any]:
    """Returns the smallest error over the step sizes by n."""
    return {f"n = {each['n']}": best(each) for each in curves}


def of_12_3(curves: list[dict]) -> dict[str, Any]:
    """Returns the smallest error over the step sizes by method and λ."""
    return {f"{each['method']}, λ = {each['lambda']:g}": best(each) for each in curves}


def of_6_4(curves: list[dict]) -> dict[str, Any]:
    """Returns by method the mean sum of rewards of the episodes after the first 100 (a fifth of
    fewer), the return of the greedy path of the mean table, and how often the greedy path of a run
    had which return."""
    found: dict[str, Any] = {}
    for each in curves:
        rewards, ends = each["rewards"], each["greedy_returns"]
        kinds = sorted(set(ends), key=lambda end: (end is None, end))
        counts = {"no end" if end is None else f"{end:g}": ends.count(end) for end in kinds}
        found[each["method"]] = {
            "reward during learning": float(np.mean(rewards[len(rewards) // 5 :])),
            "greedy path": each["path_return"],
            "greedy paths of the runs": counts,
        }
    return found


def of_5_1(tables: list[dict]) -> dict[str, Any]:
    """Returns by number of episodes the mean value with 20 or 21 and with less, and how rough the
    surfaces are."""
    found: dict[str, Any] = {}
    for each in tables:
        values = np.array(each["values"])
        plain, ace = roughness(values)
        found[f"{each['episodes']} episodes"] = {
            "value with 20": float(values[:, 8].mean()),
            "value with 21": float(values[:, 9].mean()),
            "value with 12 to 19": float(values[:, :8].mean()),
            "roughness without a usable ace": plain,
            "roughness with a usable ace": ace,
        }
    return found
