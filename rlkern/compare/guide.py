# SPDX-License-Identifier: Apache-2.0
"""Which metrics of a run to watch, what they mean, and where they lie in a healthy one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rlkern.compare.words import Declared, clips, has_ratio, needs_groups, needs_value


class Metric(NamedTuple):
    """A key of metrics.jsonl, in words; `belongs` says of which declarations."""

    key: str
    meaning: str
    healthy: str
    belongs: Callable[[Declared], bool]


def _always(declared: Declared) -> bool:
    return True


def _learns_from(*kinds: str) -> Callable[[Declared], bool]:
    return lambda declared: declared.learns_from in kinds


def _clips_by(*levels: str) -> Callable[[Declared], bool]:
    return lambda declared: clips(declared) and getattr(declared, "level", "") in levels


def _samples(*rules: str) -> Callable[[Declared], bool]:
    return lambda declared: getattr(declared, "sampling", "") in rules


_online = _learns_from("rollouts")

# Ranges are those of runs that learned, in the papers and in the comparison; a run outside is not
# wrong, but worth a look.
METRICS = (
    Metric(
        "eval/accuracy",
        "held-out accuracy: of sampled answers, or of pairs put in order",
        "rises; look at it before any other",
        _always,
    ),
    Metric(
        "reward", "mean reward of the rollouts", "rises, a little ahead of eval/accuracy", _online
    ),
    Metric(
        "frac_reward_zero_std",
        "share of groups whose answers all have the same reward and teach nothing",
        "below 0.5; near 1 the prompts are too easy or too hard, or the groups too small",
        needs_groups,
    ),
    Metric(
        "sampling/groups_sampled",
        "groups sampled so far, those that were dropped included",
        "at most 3 for each that is trained on; beyond that other prompts are cheaper",
        _samples("dynamic"),
    ),
    Metric(
        "sampling/useful_groups",
        "groups so far whose rewards differ",
        "at least half of sampling/groups_sampled; else a batch is mostly copies",
        _samples("duplicate"),
    ),
    Metric(
        "entropy",
        "of the next token, nats, at the temperature of the sampler",
        "falls slowly; near 0 all answers to a prompt are the same",
        _online,
    ),
    Metric(
        "clip_ratio/region_mean",
        "share of tokens whose ratio lies where the clip takes the gradient away",
        "0 in the first update on a rollout, below 0.2 over all of them",
        _clips_by("token"),
    ),
    Metric(
        "clip_ratio/region_mean",
        "share of tokens in answers whose ratio lies where the clip takes the gradient away",
        "0 in the first update on a rollout; then 0.1 to 0.5 is usual, for whole answers are"
        " clipped, about a hundred times the share of a token's clip",
        _clips_by("sequence", "sequence_token", "clipped_sequence", "product"),
    ),
    Metric(
        "loss",
        "the objective of the last step",
        "near 0 from the start, and no bug: at ratio 1 a loss of centred advantages is 0, its"
        " gradient is not",
        lambda declared: has_ratio(declared) and needs_groups(declared),
    ),
    Metric(
        "kl",
        "divergence from the starting model, nats a token; logged where the model is kept",
        "rises slowly from 0; a jump says that the step or the learning rate is too large",
        lambda declared: _online(declared) and bool(declared.defaults.get("kl_coef")),
    ),
    Metric(
        "objective/kl",
        "divergence of answers from the starting model, nats; logged when it is in the reward",
        "a few nats; reward that rises along with tens of them is won by leaving the language",
        lambda declared: "kl" in getattr(declared, "reward_terms", ()),
    ),
    Metric(
        "critic/vf_explained_var",
        "share of the returns' variance that the value function explains",
        "above 0.2 once warm; at or below 0 it adds noise: warm it up longer (critic_warmup)",
        needs_value,
    ),
    Metric("critic/vf_loss", "half the squared error of the value function", "falls", needs_value),
    Metric(
        "completions/clipped_ratio",
        "share of answers cut off at max_new_tokens",
        "below 0.1; else allow longer answers or punish them",
        _online,
    ),
    Metric(
        "rewards/accuracies",
        "share of the batch's pairs that are in the right order",
        "from 0.5 to above 0.8",
        _learns_from("pairs"),
    ),
    Metric(
        "rewards/margins",
        "lead of the chosen answer over the rejected one, in units of the loss",
        "rises from 0; where logps/chosen falls at the same time, lower the learning rate",
        _learns_from("pairs"),
    ),
    Metric("grad_norm", "before clipping", "no spikes beyond ten times its median", _always),
    Metric("skipped_updates", "updates skipped: loss or gradient was not finite", "0", _always),
)


def to_watch(declared: Declared) -> list[Metric]:
    """Returns the metrics that say whether a run of this algorithm is healthy.

    >>> from rlkern.algorithms.registry import OfflineAlgorithm
    >>> [m.key for m in to_watch(OfflineAlgorithm("x", "p", "answers", "policy_loss"))]
    ['eval/accuracy', 'grad_norm', 'skipped_updates']
    """
    return [metric for metric in METRICS if metric.belongs(declared)]
