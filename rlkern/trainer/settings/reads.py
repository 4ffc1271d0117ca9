# SPDX-License-Identifier: Apache-2.0
"""Which keys a run reads, by what its algorithm declares.

A key that nothing of the run would read is refused if somebody gave it, and is not written down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlkern.algorithms import BaseAlgorithm
from rlkern.trainer.settings.schema import Settings

SAMPLED, FACTS, DATA = "sampled", "facts", "data"
# Rewards that compare with the answer of an item.
OF_ANSWERS = frozenset(("task", "math", "exact", "contains"))
# Advantages that spread rewards over tokens.
OVER_TOKENS = frozenset(("gae", "reinforce_plus_plus"))
# Advantages that are divided by a deviation.
DEVIATING = frozenset(
    "normalized batch_normalized pass_at_k_normalized gdpo reinforce_plus_plus"
    " reinforce_plus_plus_baseline gae".split()
)
# Tasks that are made here, not by reasoning-gym.
OWN_TASKS = ("addition", "guess")


@dataclass(frozen=True)
class Facts:
    """What decides which keys are read: the declaration and four values."""

    declared: BaseAlgorithm
    task: str
    pairs: str
    supervised: bool
    file: bool = False

    @property
    def own_task(self) -> bool:
        """Whether the task is an environment of one's own."""
        return ":" in self.task

    @property
    def family(self) -> bool:
        """Whether the task is a reasoning-gym family."""
        return not (self.file or self.own_task or self.task in OWN_TASKS)

    @property
    def online(self) -> bool:
        """Whether the run learns from rollouts of its own."""
        return self.declared.online

    @property
    def judges(self) -> bool:
        """Whether the run learns from preferences."""
        return self.declared.learns_from in ("pairs", "judged")

    @property
    def samples(self) -> bool:
        """Whether training answers are sampled and rewarded."""
        return self.online or (self.judges and self.pairs == SAMPLED)

    @property
    def answers_task(self) -> bool:
        """Whether the policy is evaluated by answers to the task."""
        if self.declared.trains != "policy":
            return False
        # What a file says need not be the only right answer.
        if self.declared.learns_from == "answers":
            return not self.file
        return not self.judges or self.pairs == SAMPLED

    @property
    def advantage(self) -> str:
        """The name of the advantage, empty if the loss has none."""
        return self.declared.advantage


# Keys (a group stands for all of its keys), what a run that reads them does, and whether this one
# does. A key is read if no line that names it says otherwise.
READERS: tuple[tuple[str, str, Callable[[Facts], bool]], ...] = (
    (
        "critic advantage.gae_lambda advantage.whiten",
        "have a value function",
        lambda run: "value" in run.declared.needs,
    ),
    (
        "advantage.discount",
        "spread rewards over tokens",
        lambda run: run.advantage in OVER_TOKENS,
    ),
    (
        "advantage.ddof",
        "divide advantages by a deviation",
        lambda run: run.advantage in DEVIATING,
    ),
    (
        "advantage.reference_samples advantage.optimal_temperature",
        "need answers of the starting model",
        lambda run: "reference_samples" in run.declared.needs,
    ),
    ("teacher", "learn from a teacher", lambda run: "teacher" in run.declared.needs),
    ("pairs", "learn from preferences", lambda run: run.judges),
    ("pairs.items", "sample their pairs", lambda run: run.samples),
    (
        "loss.kind",
        "leave the kind of preference loss open",
        lambda run: (
            run.declared.loss == "preference_loss" and "loss.kind" not in run.declared.settings
        ),
    ),
    (
        "groups correction batch.epochs batch.minibatches batch.skip_silent rollout.engine"
        " loss.compare"
        " loss.overlong_filter loss.entropy_over loss.nll_coef reward.degenerate_limit"
        " output.completions",
        "learn from answers of their own",
        lambda run: run.online,
    ),
    (
        "reward.kl_coef reward.adaptive",
        "have a KL in the reward (coefficients.kl_coef weighs one in the loss)",
        lambda run: run.declared.kl_in_reward,
    ),
    (
        "reward.overlong_cache",
        "learn from the sum of their rewards",
        lambda run: run.online and "several_rewards" not in run.declared.needs,
    ),
    (
        "reward rollout.group_size memory.length_bucket",
        "sample answers to learn from",
        lambda run: run.samples,
    ),
    (
        "rollout",
        "sample answers, to learn from or to be evaluated by",
        lambda run: run.samples or run.answers_task or run.supervised,
    ),
    (
        "eval.modes eval.samples eval.pass_at",
        "are evaluated by answers to the task",
        lambda run: run.answers_task,
    ),
    (
        "memory.share_prompts loss.path",
        "score tokens",
        lambda run: run.declared.trains == "policy" or run.supervised,
    ),
    ("lora", "train a policy", lambda run: run.declared.trains == "policy"),
    ("task", "have no data.train", lambda run: not run.file or run.own_task),
    ("data.shots", "ask a reasoning-gym family", lambda run: run.family),
    (
        "data.options",
        "ask a reasoning-gym family or an environment",
        lambda run: run.family or run.own_task,
    ),
    (
        "data.template",
        "ask a reasoning-gym family or have a data.train",
        lambda run: run.family or run.file,
    ),
    ("data.eval", "have a data.train", lambda run: run.file),
    (
        "data.columns data.system data.stop data.max_prompt data.too_long",
        "have a data.train",
        lambda run: run.file or run.own_task,
    ),
    (
        "data.chat",
        "have a data.train and no environment",
        lambda run: run.file and not run.own_task,
    ),
)


def unread(key: str, run: Facts) -> str | None:
    """Returns what runs do that read a key, if this one does not; None if it does.

    >>> from rlkern.algorithms import declarations
    >>> unread("critic.lr", Facts(declarations()["grpo"], "addition", "sampled", False))
    'have a value function'
    """
    for keys, what, reads in READERS:
        named = any(key == each or key.startswith(f"{each}.") for each in keys.split())
        if named and not reads(run):
            return what
    return None


def samples_answers(settings: Settings) -> bool:
    """Returns whether answers are sampled in a run, to learn from or to be evaluated by."""
    run = facts(settings)
    return run.samples or run.answers_task or run.supervised


def facts(settings: Settings) -> Facts:
    """Returns what decides which keys of these settings are read."""
    return Facts(
        settings.declared,
        settings.task,
        settings.pairs.source,
        settings.sft is not None,
        settings.data.train is not None,
    )
