# SPDX-License-Identifier: Apache-2.0
"""What the words of a declaration mean to a reader; a word that is not here stands for itself."""

from __future__ import annotations

from rlkern.algorithms.registry import Algorithm, OfflineAlgorithm

Declared = Algorithm | OfflineAlgorithm

# What an advantage is normalised by; in the second table what it is a comparison with.
NORMALISED = {
    "normalized": "mean and std of the group",
    "centered": "mean of the group",
    "leave_one_out": "mean of the others of the group",
    "length_weighted": "mean of the group, answers weighted by length",
    "max_rl": "mean of the group, divided by it",
    "win_rate": "share of the group that is beaten",
    "gpg": "mean of the group, times all groups / useful ones",
    "gdpo": "each reward by its group, then the batch",
    "batch_normalized": "mean of the group, std of the batch",
    "reinforce_plus_plus_baseline": "mean of the group, then mean and std of the batch",
    "reinforce_plus_plus": "mean and std of the batch's tokens",
    "batch_centered": "mean of the batch",
    "remax": "reward of the greedy answer",
    "optimal": "V* from answers of the starting model",
    "gae": "value function, by GAE",
    "reward": "nothing",
    "teacher": "no reward: the teacher's log-probability of each token",
}
COMPARED_IN_GROUPS = frozenset(
    "normalized centered leave_one_out length_weighted max_rl gpg gdpo win_rate"
    " batch_normalized reinforce_plus_plus_baseline".split()
)
LEVELS = {
    "token": "token",
    "sequence": "answer, geometric mean",
    "sequence_token": "answer, gradient by token",
    "product": "answer, product",
    "clipped_sequence": "answer, tokens clipped first",
}
# Gates whose loss has no importance ratio, and levels that clip, so that their gate does not.
WITHOUT_RATIO = frozenset({"", "reinforce", "dft"})
CLIPPING_LEVELS = frozenset({"clipped_sequence"})
AGGREGATIONS = {
    "token_mean": "tokens of the batch",
    "sequence_token_mean": "answers, each the mean of its tokens",
    "sequence_token_sum": "answers, each the sum of its tokens / a constant",
}
SAMPLING = {
    "all": "every group",
    "dynamic": "samples on until every group is mixed",
    "duplicate": "copies mixed groups into the places of the others",
}
DATA = {
    "rollouts": "its own answers",
    "answers": "right answers",
    "pairs": "preference pairs",
    "judged": "answers, each good or bad",
}
NEEDS = {
    "value": "a value function: `critic` is head (one more output) or separate (a model)",
    "reference": "the starting model, frozen",
    "reference_samples": "answers of the starting model to each prompt, for V*",
    "greedy": "a greedy answer to each prompt",
    "several_rewards": "rewards kept apart, each normalised on its own",
    "teacher": "another model with the same tokenizer (`teacher`), which scores the tokens",
}
STATISTICS = {
    "m2po": "the second moment of the log ratios: the furthest tokens are dropped",
    "clip_cov": "the covariance of advantage and log-probability: a few high ones are dropped",
    "entropy_quantile": "a quantile of the entropies: the tokens below it are dropped",
    "fipo": "the discounted log ratios of what follows a token",
    "kl_cov": "the covariance of advantage and log-probability: a pull on the highest",
    "ess": "the effective sample size of the ratios, which caps them",
}
REWARD_TERMS = {
    "kl": "the KL to the starting model, inside the reward (`reward_kl_coef`)",
    "overlong": "a punishment of answers close to the longest (`overlong_cache`)",
}


def yes(holds: object) -> str:
    """Returns yes, or nothing at all: a table of needs is read by its gaps."""
    return "yes" if holds else ""


def needs_value(declared: Declared) -> bool:
    """Returns True where a value function is trained beside the policy."""
    return "value" in declared.needs


def needs_reference(declared: Declared) -> bool:
    """Returns True where the starting model is kept with the algorithm's own defaults."""
    in_reward = "kl" in getattr(declared, "reward_terms", ())
    wanted = {"reference", "reference_samples"} & set(declared.needs)
    return bool(wanted or in_reward or declared.defaults.get("kl_coef"))


def needs_groups(declared: Declared) -> bool:
    """Returns True where several answers to one prompt are compared with each other."""
    kind, rule = getattr(declared, "advantage", None), getattr(declared, "sampling", "all")
    return kind in COMPARED_IN_GROUPS or rule != "all"


def has_ratio(declared: Declared) -> bool:
    """Returns True where the loss holds an importance ratio, in its gate or in a statistic."""
    return getattr(declared, "gate", "") not in WITHOUT_RATIO or bool(declared.statistic)


def clips(declared: Declared) -> bool:
    """Returns True if a clip or a mask of the gate can take a token's gradient away.

    >>> clips(rlkern.algorithms()["grpo"]), clips(rlkern.algorithms()["sapo"])
    (True, False)
    """
    if getattr(declared, "level", "") in CLIPPING_LEVELS:
        return False
    return any(name and name.startswith("clip_") for name in getattr(declared, "gate_coef", ()))


def ratio(declared: Declared) -> str:
    """Returns whose probability the ratio compares.

    >>> ratio(Algorithm("x", "p", gate="ppo_clip", advantage="gae", aggregation="token_mean"))
    'token'
    """
    level = getattr(declared, "level", "")
    return LEVELS.get(level, level) if has_ratio(declared) else "none"


def policy(declared: Declared) -> str:
    """Returns whose answers are learned from, in the words of the field."""
    if isinstance(declared, OfflineAlgorithm):
        return "off-policy"
    if declared.anchor != "old":
        return f"own answers, ratio to the {declared.anchor}"
    updates = declared.settings.get("batch.epochs", 1) * declared.settings.get(
        "batch.minibatches", 1
    )
    if not has_ratio(declared):
        return "on-policy"
    return f"near on-policy, {updates} updates a rollout" if updates > 1 else "near on-policy"


def normalised(declared: Declared) -> str:
    """Returns what the rewards are compared with."""
    kind = getattr(declared, "advantage", None)
    return NORMALISED.get(kind, kind.replace("_", " ")) if kind else ""


def averaged(declared: Declared) -> str:
    """Returns what the loss is the mean over."""
    kind = getattr(declared, "aggregation", None)
    return AGGREGATIONS.get(kind, kind.replace("_", " ")) if kind else DATA[declared.learns_from]


def asks(declared: Declared) -> list[str]:
    """Returns what an algorithm asks of a trainer, a phrase for each."""
    found = [f"learns from {DATA[declared.learns_from]}"]
    if isinstance(declared, OfflineAlgorithm):
        found.append(f"trains the {declared.trains.replace('_', ' ')}")
    found += [NEEDS.get(need, need) for need in declared.needs]
    if isinstance(declared, Algorithm):
        found += [REWARD_TERMS.get(term, term) for term in declared.reward_terms]
        found.append(f"groups: {SAMPLING.get(declared.sampling, declared.sampling)}")
        found.append(f"advantage against {normalised(declared)}")
        found.append(f"importance ratio: {ratio(declared)}")
        if declared.statistic:
            found.append(f"tokens weighted by {STATISTICS[declared.statistic]}")
        found.append(f"loss: mean over {averaged(declared)}")
    if declared.defaults.get("kl_coef"):
        found.append("the starting model, frozen, for the KL in the loss")
    return found
