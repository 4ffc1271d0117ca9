# SPDX-License-Identifier: Apache-2.0
"""The page of all algorithms: what each needs, from the declarations, next to what it measured."""

from __future__ import annotations

from typing import Any

from rlkern.compare import measure, words
from rlkern.compare.markdown import escaped, link, table, thousands
from rlkern.compare.measure import ACCURACY, ANSWERED, SAMPLED, TOKENS, USEFUL, Run, Spread, spread
from rlkern.compare.sections import clip_section, gap_section, sampling_section
from rlkern.compare.words import Declared, yes

_MEBI = 2**20
_INTRO = """\
Every page and every number here is made by `make compare` (runs, then pages) or `make docs` (pages
alone): needs from the declarations in `rlkern/algorithms/`, measurements from the lines in
`benchmarks/results/compare/`, one file for each run. What was not run says so."""
_HOW = """\
All start from the same weights for each seed, but for the rounding of the version that ran them
(*before* shows what that makes), and see the same prompts. Each runs its own file in
`configs/algorithms/`, on one core: how many rollouts, updates on each and learning rate suit it
differs, so compare the tokens and seconds to an accuracy before the accuracy at the end. A run is
a process of its own. *Seconds* and *generated tokens to* an accuracy are those of the first
evaluation that reaches it, evaluations before it included, start-up and the supervised stage left
out; *process seconds*, *CPU seconds* and *peak MiB* are of the whole process. A value is the mean
over the seeds, with the lowest and the highest in brackets. *Equal groups* is the share of the
sampled groups whose answers all have the same reward: those teach nothing."""
_MEASURED = (
    "algorithm", "before", "after", "seconds to {goal}", "generated tokens to {goal}",
    "process seconds", "CPU seconds", "peak MiB", "equal groups",
)  # fmt: skip
_NEEDED = (
    "algorithm", "learns from", "value net", "reference", "pairs", "groups", "greedy answer",
    "policy", "ratio of", "normalised by", "loss is the mean over", "sampling", "paper",
)  # fmt: skip
# Settings that no number of the tables depends on, or that the page says elsewhere.
_UNSEEN = frozenset(
    "algorithm seed device threads sft eval.batch eval.modes reward.degenerate_limit eval.keep_best"
    " output.save_every".split()
)
# Heading, what the accuracy is, and which declarations the table is of.
_TABLES = (
    ("Learning from their own answers", "held-out accuracy of sampled answers", ("rollouts",)),
    ("Learning from right answers", "held-out accuracy of sampled answers", ("answers",)),
    ("Learning from judgements", "held-out pairs in the right order", ("pairs", "judged")),
)
_ANSWERED = """\
What the same policies then answer, held-out accuracy of sampled answers: these losses compare two
answers or judge one, and all but ORPO's, which has the chosen answer's likelihood in it, leave open
how likely the better one is in the end."""


def page(declared: dict[str, Declared], runs: dict[str, list[Run]], notes: dict[str, str]) -> str:
    """Returns the text of algorithms.md."""
    parts = ["# The algorithms, compared", _INTRO]
    if any(name in runs for name in declared):
        parts += ["## Measured", _HOW, *_conditions(declared, runs)]
    for heading, accuracy, kinds in _TABLES:
        own = {name: one for name, one in declared.items() if one.learns_from in kinds}
        if own:
            parts += [f"### {heading}", *_measured(own, runs, accuracy, kinds[0])]
    said = [f"- [{name}](algorithms/{name}.md): {text}" for name, text in notes.items()]
    if said:
        parts += ["### What the numbers do not say", "\n".join(said)]
    parts += ["## What each needs", _needed(declared)]
    parts += sampling_section(declared, runs) + clip_section(declared, runs)
    parts += gap_section(runs)
    return "\n\n".join(parts) + "\n"


def _conditions(declared: dict[str, Declared], runs: dict[str, list[Run]]) -> list[str]:
    kinds = {name: one.learns_from for name, one in declared.items()}
    ran = [run for name, own in runs.items() if name in kinds for run in own]
    ran = [run for run in ran if kinds[run.head["algorithm"]] == "rollouts"] or ran
    ran = [run for run in ran if "stages" not in run.head["settings"]] or ran  # have none in common
    first, common = ran[0], dict(ran[0].head["settings"])
    for run in ran:
        own = run.head["settings"]
        common = {key: value for key, value in common.items() if own.get(key) == value}
    where = first.head["where"]
    return [
        _settings(common, first),
        f"Measured on {where['cpu']}, {where['jobs']} runs at a time with one thread each,"
        f" torch {where['torch']}, Python {where['python']}.",
        "![Held-out accuracy of every algorithm](algorithms.png)",
    ]


def settings_line(run: Run) -> str:
    """Returns the settings of a run that are not the defaults, and those of its start."""
    return _settings(run.head["settings"], run)


def _settings(settings: dict[str, Any], run: Run) -> str:
    shown = {k: v for k, v in settings.items() if k not in _UNSEEN}
    start = {k: v for k, v in run.head["start"].items() if k.startswith("sft.")}
    return f"Settings: {_pairs(shown)}. The start: {_pairs(start)}."


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in values.items()) or "the defaults"


def _measured(
    own: dict[str, Declared], runs: dict[str, list[Run]], accuracy: str, kind: str
) -> list[str]:
    goal = measure.target(kind)
    ran = {name: runs[name] for name in own if name in runs}
    missing = [link(name) for name in own if name not in ran]
    parts = [f"Before and after: {accuracy}."]
    if ran:
        head = [column.format(goal=f"{goal:g}") for column in _MEASURED]
        order = sorted(ran, key=lambda name: -spread(ran[name], _last).mean)
        parts.append(table(head, [(link(name), *_row(ran[name], goal)) for name in order]))
        parts += _answers({name: ran[name] for name in order}) if kind == "pairs" else []
    if missing:
        parts.append(f"Not run: {', '.join(missing)}.")
    return parts


def _answers(ran: dict[str, list[Run]]) -> list[str]:
    """Returns what policies that learned from judgements answer; nothing where none was asked."""
    rows = [
        (
            link(name),
            spread(own, lambda run: run.curve(ANSWERED)[1][0]).text(),
            spread(own, lambda run: run.last(ANSWERED)).text(),
        )
        for name, own in ran.items()
        if all(run.curve(ANSWERED)[1] for run in own)
    ]
    head = ("algorithm", "right answers before", "after")
    return [_ANSWERED, table(head, rows)] if rows else []


def _last(run: Run) -> float | None:
    return run.last(ACCURACY)


def _row(runs: list[Run], goal: float) -> tuple[str, ...]:
    return (
        spread(runs, lambda run: run.curve(ACCURACY)[1][0]).text(),
        spread(runs, _last).text(),
        spread(runs, lambda run: run.first("seconds", goal)).text("{:.0f}".format),
        _tokens(runs, goal).text(thousands),
        spread(runs, lambda run: run.summary["wall_seconds"]).text("{:.0f}".format),
        spread(runs, lambda run: run.summary["cpu_seconds"]).text("{:.0f}".format),
        spread(runs, lambda run: run.summary["peak_bytes"] / _MEBI).text("{:.0f}".format),
        _equal(runs).text(),
    )


def _equal(runs: list[Run]) -> Spread:
    """Returns the share of the groups sampled that taught nothing, those that were dropped too."""
    counts = [(run.last(SAMPLED), run.last(USEFUL)) for run in runs]
    return Spread([1 - (useful or 0) / sampled for sampled, useful in counts if sampled])


def _tokens(runs: list[Run], goal: float) -> Spread:
    """Returns generated tokens to the goal; nothing where none were generated at all."""
    if all(run.last(TOKENS) is None for run in runs):
        return Spread()
    return spread(runs, lambda run: run.first(TOKENS, goal))


def seed_row(run: Run, goal: float) -> tuple[str, ...]:
    """Returns one run as a row of its algorithm's page."""
    before, *rest, _ = _row([run], goal)
    return (str(run.seed), before, *rest)


def _needed(declared: dict[str, Declared]) -> str:
    return table(_NEEDED, [_needs(name, one) for name, one in declared.items()])


def _needs(name: str, one: Declared) -> tuple[str, ...]:
    rule = one.sampling if one.online else ""
    return (
        link(name),
        words.DATA[one.learns_from],
        yes(words.needs_value(one)),
        yes(words.needs_reference(one)),
        yes("pairs" in one.learns_from),
        yes(words.needs_groups(one)),
        yes("greedy" in one.needs),
        words.policy(one),
        words.ratio(one),
        escaped(words.normalised(one)),
        words.averaged(one),
        words.SAMPLING.get(rule, rule),
        one.paper,
    )
