# SPDX-License-Identifier: Apache-2.0
"""What sets the weight of the KL penalty from step to step."""

from rlkern.ops import _check as check


class FixedKl:
    """A KL coefficient that stays as it is.

    >>> controller = FixedKl(0.05)
    >>> controller.update(kl=3.0, count=64)
    >>> controller.coef
    0.05
    """

    def __init__(self, coef: float) -> None:
        self.coef = _at_least_zero("FixedKl", "coef", coef)

    def update(self, kl: float, count: int) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, float]:
        """Returns what load_state_dict takes."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continues where the other controller was."""
        self.coef = _at_least_zero("FixedKl", "coef", state["coef"])


class AdaptiveKl:
    """A KL coefficient that follows the divergence towards a target.

        coef ← coef · (1 + clip(kl/target − 1, −0.2, 0.2) · count/horizon)

    Paper: arXiv 1909.08593, §2.2, where count and horizon are in answers; verl and OpenRLHF count
    the same. kl is the mean over the answers of the sum over tokens; π drew them if it estimates
    KL(π‖π_ref) by Σ log π − log π_ref. verl and OpenRLHF take means over tokens, whose targets are
    smaller by the length of an answer.

    >>> controller = AdaptiveKl(0.1, target=6.0, horizon=100)
    >>> controller.update(kl=60.0, count=50)
    >>> round(controller.coef, 4)  # 0.1 · (1 + 0.2 · 50/100)
    0.11
    """

    clip = 0.2

    def __init__(self, coef: float, *, target: float, horizon: float) -> None:
        op = "AdaptiveKl"
        self.coef = _at_least_zero(op, "coef", coef)
        self.target = _positive(op, "target", target)
        self.horizon = _positive(op, "horizon", horizon)

    def update(self, kl: float, count: int) -> None:
        """Moves the coefficient after a batch of count answers of mean divergence kl."""
        kl = check.number("AdaptiveKl", "kl", kl)
        if not 0 <= count <= self.horizon / self.clip:
            most = self.horizon / self.clip
            raise ValueError(f"AdaptiveKl: count must be in [0, {most:g}], got {count}")
        error = min(max(kl / self.target - 1, -self.clip), self.clip)
        self.coef *= 1 + error * count / self.horizon

    def state_dict(self) -> dict[str, float]:
        """Returns what load_state_dict takes."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continues where the other controller was; target and horizon are this one's."""
        self.coef = _at_least_zero("AdaptiveKl", "coef", state["coef"])


def _at_least_zero(op: str, name: str, x: float) -> float:
    value = check.number(op, name, x)
    if value < 0:
        raise ValueError(f"{op}: {name} must be at least 0, got {value}")
    return value


def _positive(op: str, name: str, x: float) -> float:
    value = check.number(op, name, x)
    if value <= 0:
        raise ValueError(f"{op}: {name} must be greater than 0, got {value}")
    return value
