# SPDX-License-Identifier: Apache-2.0
"""Comparisons that one declared property explains: sampling rule, level of the ratio, reward."""

from __future__ import annotations

from rlkern.compare import words
from rlkern.compare.markdown import link, table
from rlkern.compare.measure import TOKENS, USEFUL, Run, Spread, spread
from rlkern.compare.words import Declared

CLIPPED, TRAINED = "clip_ratio/region_mean", "sampling/groups_trained"
LEARNED = "rewards/reward_model/mean"
_SAMPLING = """\
A group teaches something only where its rewards differ. Dynamic sampling samples until the batch is
full of such groups and drops what it has too many of; duplicating samples once and fills the places
of the others with copies. *Filled places* are groups in the loss that have a gradient, copies
included; *tokens per distinct group* leaves the copies out."""
_CLIP = """\
The share of tokens that lie where the clip takes the gradient away, by whose ratio is clipped.
Ratios of whole answers are means, so their clip widths are a thousand times smaller, and a clipped
answer is clipped with all its tokens. With one update on each rollout every ratio is 1 and nothing
is clipped."""
_GAP = """\
Trained against a learned reward, a policy raises that first and the true one only as far as the two
agree. The gap between them is what over-optimisation has won."""

_STAGES = """\
Held-out accuracy by stage: of sampled answers by the true reward, of pairs for the reward model.
The rewards below are means over the rollouts of the last stage."""


def filled(run: Run, rule: str) -> float | None:
    """Returns the groups with a gradient that a run was trained on, copies included."""
    trained, steps = run.mean(TRAINED), run.last("step")
    if rule in ("", "all"):
        return run.last(USEFUL)
    return trained * steps if trained and steps else None


def distinct(run: Run, rule: str) -> float | None:
    """Returns the same without copies; surplus groups that were dropped do not count."""
    found, useful = filled(run, rule), run.last(USEFUL)
    return min(found, useful) if found and useful else None


def _per(run: Run, groups: float | None) -> float | None:
    tokens = run.last(TOKENS)
    return tokens / groups if tokens and groups else None


def sampling_section(declared: dict[str, Declared], runs: dict[str, list[Run]]) -> list[str]:
    """Returns what each rule of sampling pays for a useful group; nothing without such rules."""
    rules: dict[str, list[str]] = {}
    for name, one in declared.items():
        if words.needs_groups(one):
            rules.setdefault(getattr(one, "sampling", "all"), []).append(name)
    if len(rules) < 2:
        return []
    rows = []
    for rule, names in rules.items():
        ran = [run for name in names for run in runs.get(name, [])]
        label = ", ".join(names) if len(names) <= 3 else f"{len(names)} algorithms"
        rows.append((f"{words.SAMPLING.get(rule, rule)} ({label})", *_costs(ran, rule)))
    head = ("sampling", "tokens per filled place", "tokens per distinct group", "filled places")
    return ["## What a useful group costs", _SAMPLING, table(head, rows)]


def _costs(runs: list[Run], rule: str) -> tuple[str, ...]:
    if not any(run.last(TOKENS) for run in runs):
        return ("not run", "", "")
    return (
        spread(runs, lambda run: _per(run, filled(run, rule))).text("{:.0f}".format),
        spread(runs, lambda run: _per(run, distinct(run, rule))).text("{:.0f}".format),
        spread(runs, lambda run: filled(run, rule)).text("{:.0f}".format),
    )


def clip_section(declared: dict[str, Declared], runs: dict[str, list[Run]]) -> list[str]:
    """Returns the clip fractions by the level of the ratio; nothing without two levels."""
    clipped = {name: one for name, one in declared.items() if words.clips(one)}
    if len({words.ratio(one) for one in clipped.values()}) < 2:
        return []
    rows = []
    for name, one in sorted(clipped.items(), key=lambda pair: words.ratio(pair[1])):
        widths = [f"{key} {one.defaults[key]:g}" for key in ("clip_low", "clip_high")
                  if key in one.defaults]  # fmt: skip
        found = spread(runs.get(name, []), lambda run: run.mean(CLIPPED))
        share = found.text("{:.2g}".format) if runs.get(name) else "not run"
        rows.append((words.ratio(one), link(name), ", ".join(widths), share))
    head = ("ratio of", "algorithm", "clip", "share of tokens clipped")
    parts = ["## What the clip holds", _CLIP, table(head, rows)]
    if any(name in runs for name in clipped):
        parts.append("![Share of tokens clipped, by step](algorithms-clip.png)")
    return parts


def pairs_of_rewards(run: Run) -> list[str]:
    """Returns the keys of a run's rewards where a learned one stands beside others."""
    keys = {key for point in run.points for key in point if _is_reward(key)}
    return sorted(keys) if LEARNED in keys and len(keys) > 1 else []


def _is_reward(key: str) -> bool:
    parts = key.split("/")
    return len(parts) >= 3 and parts[0] == "rewards" and parts[-1] == "mean"


def gap_section(runs: dict[str, list[Run]]) -> list[str]:
    """Returns proxy and true reward of runs that logged both."""
    parts = ["## Reward model and true reward", _GAP]
    rows, stages = [], []
    for name, own in runs.items():
        stages += _stages(name, own)
        for key in pairs_of_rewards(own[0]):
            curves = [run.curve(key)[1] for run in own]
            first = Spread([curve[0] for curve in curves if curve], len(own))
            last = Spread([curve[-1] for curve in curves if curve], len(own))
            rows.append((name, f"`{key}`", first.text("{:.3f}".format), last.text("{:.3f}".format)))
    if not rows:
        return [*parts, "No run against a reward model is on record."]
    if stages:
        parts += [_STAGES, table(("run", "stage", "before", "after"), stages)]
    head = ("run", "reward", "first", "last")
    return [*parts, table(head, rows), "![Both rewards](algorithms-rewards.png)"]


def _stages(name: str, runs: list[Run]) -> list[tuple[str, ...]]:
    """Returns a row for each stage of a pipeline."""
    by_seed = [run.summary.get("stages", []) for run in runs]
    return [
        (
            name,
            same[0]["stage"],
            *(
                Spread([one[when] for one in same], len(runs)).text()
                for when in ("before", "after")
            ),
        )
        for same in zip(*by_seed)
    ]
