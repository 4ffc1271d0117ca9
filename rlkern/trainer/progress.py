# SPDX-License-Identifier: Apache-2.0
"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """All that the rest of a run depends on in addition to weights and random states; what moves it
    are the steps of its learner.

    step counts rollouts or batches, update optimizer steps, position is the place in the task's
    stream, unscored_rollouts counts the last ones, if no answer of theirs had a reward, data is the
    SHA-256 of the files that are learned from, by key; supervised and supervised_position are the
    steps and the place in the stream of a supervised start that was stopped, 0 once it is over; the
    others are sums over the steps so far.
    """

    step: int = 0
    update: int = 0
    position: int = 0
    num_tokens: int = 0
    generated_tokens: int = 0
    sampled_groups: int = 0
    useful_groups: int = 0
    degenerate_steps: int = 0
    short_steps: int = 0
    skipped_updates: int = 0
    cut_off_steps: int = 0
    late_answers: int = 0
    unscored_rollouts: int = 0
    supervised: int = 0
    supervised_position: int = 0
    seconds: float = 0.0
    reward_kl_coef: float = 0.0
    before: dict[str, float] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)

    def count_groups(self, sampled: int, useful: int) -> None:
        """Notes groups, and how many of them have rewards that differ."""
        self.sampled_groups += sampled
        self.useful_groups += useful

    def count_update(self, skipped: bool) -> None:
        """Notes an optimizer step."""
        self.update += 1
        self.skipped_updates += skipped

    def count_step(self, tokens: int) -> None:
        """Notes that a rollout or batch of so many tokens is over."""
        self.step += 1
        self.num_tokens += tokens
