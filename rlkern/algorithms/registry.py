# SPDX-License-Identifier: Apache-2.0
"""What an algorithm declares, and the registry that finds the declarations by scanning."""

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

LEARNS_FROM = ("rollouts", "answers", "pairs", "judged")
TRAINS = ("policy", "reward_model")
SAMPLING = ("all", "dynamic", "duplicate")
NEEDS = ("value", "reference", "reference_samples", "greedy", "several_rewards", "teacher")
REWARD_TERMS = ("kl", "overlong")
ANCHORS = ("old", "reference")
STATISTIC_ROWS = ("correction", "penalty")


@dataclass(frozen=True)
class BaseAlgorithm:
    """What every algorithm declares; what one kind of algorithm has not is neutral in the others.

    name          as users type it
    paper         citation with equation number
    learns_from   "rollouts" (the policy's own answers), "answers" (right ones), "pairs" (a chosen
                  and a rejected answer to a prompt) or "judged" (answers, each desirable or not)
    trains        "policy", or "reward_model", which scores answers
    loss          the function of rlkern that is the loss
    defaults      value of every coefficient
    settings      the paper's values of what a trainer sets, by the keys of rlkern.trainer.Settings
                  (batch.epochs, advantage.gae_lambda, …)
    sources       where each default and each setting comes from
    needs         beside what it learns from: "value" (a value function), "reference" (the starting
                  model), "reference_samples" (answers of it to each prompt), "greedy" (a greedy
                  answer to each prompt), "several_rewards" (each normalized on its own), "teacher"
                  (another model, which scores the tokens)

    and of rollouts:

    advantage     a function of rlkern.advantage or a kind of rlkern.group_advantage, "gae",
                  "reward" (the reward as it is), "optimal" (R − V*, see a_star_po) or "teacher"
                  (log π_teacher − log π of each token); "" elsewhere
    sampling      "all" trains on every group; "dynamic" samples on until the batch is full of
                  groups whose rewards differ (rlkern.sampling.mixed_groups); "duplicate" puts
                  copies of these in the places of the others (refill_multiplicity)
    reward_terms  what the paper adds to the reward: "kl" (to the reference) or "overlong"
                  (rlkern.sampling.overlong_penalty)
    anchor        whose log-probabilities are old_logprob: those of the "old" policy, which
                  sampled, or of the "reference"
    statistic     a key of rlkern.statistics.STATISTICS, which makes a row of the tokens of a whole
                  step; "" where the tokens do not depend on each other
    statistic_row  which row of rlkern.policy_loss that is: "correction" or "penalty"
    statistic_coef  names of the coefficients that the statistic takes

    Raises ValueError if a word is none of these.
    """

    name: str
    paper: str
    learns_from: str
    loss: str
    _: KW_ONLY
    trains: str = "policy"
    defaults: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    advantage: str = ""
    sampling: str = "all"
    reward_terms: tuple[str, ...] = ()
    anchor: str = "old"
    statistic: str = ""
    statistic_row: str = "correction"
    statistic_coef: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check("learns_from", [self.learns_from], LEARNS_FROM)
        self._check("trains", [self.trains], TRAINS)
        self._check("needs", self.needs, NEEDS)
        self._check("sampling", [self.sampling], SAMPLING)
        self._check("reward_terms", self.reward_terms, REWARD_TERMS)
        self._check("anchor", [self.anchor], ANCHORS)
        self._check("statistic_row", [self.statistic_row], STATISTIC_ROWS)

    def _check(self, key: str, words: Iterable[str], known: tuple[str, ...]) -> None:
        for word in words:
            if word not in known:
                expected = ", ".join(known)
                raise ValueError(f"{self.name}: {key} must be of {expected}, got {word!r}")

    @property
    def online(self) -> bool:
        """Whether it learns from the policy's own answers."""
        return self.learns_from == "rollouts"

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL divergence to the reference is subtracted from the reward."""
        return "kl" in self.reward_terms


@dataclass(frozen=True, kw_only=True)
class Algorithm(BaseAlgorithm):
    """One algorithm that learns from rollouts: what is optimised, and how it is averaged.

    gate          the surrogate, a key of rlkern.backends.eager.gates.GATES
    gate_coef     names of the coefficients the gate takes, in order
    level         whose ratio the gate sees, a key of rlkern.backends.eager.levels.LEVELS
    aggregation   a mode of rlkern.aggregate.token_weight
    kl_estimator  a key of rlkern.backends.eager.kl.KL_ESTIMATORS
    the others    as in BaseAlgorithm
    """

    gate: str
    aggregation: str
    advantage: str = field()
    gate_coef: tuple[str, ...] = ()
    level: str = "token"
    kl_estimator: str = "k3"
    learns_from: str = field(default="rollouts", init=False)
    loss: str = field(default="policy_loss", init=False)
    trains: str = field(default="policy", init=False)


@dataclass(frozen=True, kw_only=True)
class OfflineAlgorithm(BaseAlgorithm):
    """One algorithm that learns from given answers, not from its own.

    gate          where the loss is policy_loss, the surrogate; the advantage of an answer is then 1
    the others    as in BaseAlgorithm
    """

    gate: str = ""
    advantage: str = field(default="", init=False)
    sampling: str = field(default="all", init=False)
    reward_terms: tuple[str, ...] = field(default=(), init=False)
    anchor: str = field(default="old", init=False)
    statistic: str = field(default="", init=False)
    statistic_row: str = field(default="correction", init=False)
    statistic_coef: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("learns_from", [self.learns_from], LEARNS_FROM[1:])


_FOUND: dict[str, Algorithm] = {}
_OFFLINE: dict[str, OfflineAlgorithm] = {}
_OF_ANSWERS: dict[str, Algorithm] = {}  # as policy_loss takes those that learn from answers


def scan(package: str, path: Iterable[str]) -> None:
    """Registers the ALGORITHM of every module in a package."""
    modules = [importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(path)]
    declared = [m.ALGORITHM for m in modules if hasattr(m, "ALGORITHM")]
    for found in sorted(declared, key=lambda a: a.name):
        (_FOUND if isinstance(found, Algorithm) else _OFFLINE)[found.name] = found
        if isinstance(found, OfflineAlgorithm) and found.gate:
            _OF_ANSWERS[found.name] = _of_answers(found)


def _of_answers(declared: OfflineAlgorithm) -> Algorithm:
    """Returns an algorithm of right answers as policy_loss takes it."""
    return Algorithm(
        declared.name,
        declared.paper,
        gate=declared.gate,
        advantage="reward",
        aggregation="token_mean",
        defaults={"kl_coef": 0.0, "entropy_coef": 0.0},
    )


def algorithms() -> dict[str, Algorithm]:
    """Returns every algorithm whose loss is rlkern.policy_loss, by name.

    >>> algorithms()["grpo"].aggregation
    'sequence_token_mean'
    """
    return dict(_FOUND)


def offline_algorithms() -> dict[str, OfflineAlgorithm]:
    """Returns every algorithm that learns from given answers, by name.

    >>> offline_algorithms()["dpo"].loss
    'preference_loss'
    """
    return dict(_OFFLINE)


def declarations() -> dict[str, BaseAlgorithm]:
    """Returns every algorithm by name: those that learn from their own answers, then the others.

    >>> declarations()["sft"].learns_from
    'answers'
    """
    return {**_FOUND, **_OFFLINE}


def algorithm(name: str | Algorithm) -> Algorithm:
    """Returns the algorithm of this name as policy_loss takes it; a declaration, of the registry or
    one's own, is returned as it is.

    >>> from dataclasses import replace
    >>> algorithm(replace(algorithm("grpo"), gate="cispo")).gate
    'cispo'
    >>> algorithm("gpro")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: algorithm must be one of a2c, ..., vespo, got 'gpro'
    """
    if isinstance(name, Algorithm):
        return name
    if isinstance(name, OfflineAlgorithm):
        name = name.name
    if not isinstance(name, str):
        raise TypeError(f"algorithm must be a name or an Algorithm, got {name!r}")
    if name in _OF_ANSWERS:
        return _OF_ANSWERS[name]
    if name in _OFFLINE:
        known = _OFFLINE[name]
        raise ValueError(
            f"algorithm {name!r} learns from {known.learns_from}: use rlkern.{known.loss}"
        )
    if name not in _FOUND:
        raise ValueError(f"algorithm must be one of {', '.join(_FOUND)}, got {name!r}")
    return _FOUND[name]
