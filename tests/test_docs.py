# SPDX-License-Identifier: Apache-2.0
"""The pages of the algorithms: made of files, declarations and records, and of nothing else."""

import json
import re

import pytest
import trainer_helpers
from trainer_helpers import begun, compiled, small  # noqa: F401

import rlkern
from rlkern.compare import guide, measure, pages, plan, words
from rlkern.trainer import build

DOCS = trainer_helpers.ROOT / "docs"
KNOWN = pages.known()
SAMPLERS = [name for name, one in KNOWN.items() if one.learns_from == "rollouts"]


def recorded(folder, name, seed, curve, **extra):
    """Writes the record of a run whose accuracy at steps 0, 10, 20, … is the curve."""
    where = {"cpu": "a processor", "torch": "2", "python": "3", "jobs": 2}
    head = {"algorithm": name, "seed": seed, "settings": {"steps": 20}, "start": {}, "where": where}
    points = [
        {"step": 10 * i, "seconds": 3.0 * i, "eval/accuracy": accuracy, **extra}
        for i, accuracy in enumerate(curve)
    ]
    for i, point in enumerate(points[1:], 1):
        point["sampling/generated_tokens"] = 5000 * i
    lines = [head, *points, {"wall_seconds": 50.0, "cpu_seconds": 45.0, "peak_bytes": 400 * 2**20}]
    (folder / f"{name}-{seed}.jsonl").write_text("\n".join(map(json.dumps, lines)))


def groups(useful):
    """Returns what a run counts when so many of 100 groups had rewards that differ."""
    return {"sampling/groups_sampled": 100, "sampling/useful_groups": useful}


def row(text, name):
    """Returns the cells of the first table row that begins with a link to an algorithm."""
    line = next(line for line in text.split("\n") if line.startswith(f"| [{name}]"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_committed_pages_are_what_the_generator_makes_now():
    notes = plan.load(trainer_helpers.ROOT / pages.CONFIG).notes
    runs = measure.load(trainer_helpers.ROOT / pages.RECORDS)
    stale = [
        path
        for path, text in pages.texts(runs, notes).items()
        if not (DOCS / path).is_file() or (DOCS / path).read_text(encoding="utf-8") != text
    ]
    assert not stale, "run make docs"


def test_every_algorithm_has_a_page_and_every_page_an_algorithm():
    found = {path.stem for path in (DOCS / "algorithms").glob("*.md")}
    assert found == {*rlkern.algorithms(), *rlkern.offline_algorithms()}


def test_what_a_page_links_to_is_there():
    for path in [DOCS / "algorithms.md", *(DOCS / "algorithms").glob("*.md")]:
        targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
        assert targets
        assert not [t for t in targets if not (path.parent / t).exists()], path


@pytest.mark.parametrize("name", KNOWN)
def test_a_page_shows_every_number_of_a_declaration_with_its_source(name):
    declared = KNOWN[name]
    text = (DOCS / "algorithms" / f"{name}.md").read_text(encoding="utf-8")
    for key in (*declared.defaults, *declared.settings):
        line = next(line for line in text.split("\n") if line.startswith(f"| `{key}` |"))
        assert pages.escaped(declared.sources[key]) in line
    assert ">>> " in text and "Paper:" in text and "rlkern train --" in text


@pytest.mark.parametrize("name", KNOWN)
def test_every_word_of_a_declaration_is_explained(name):
    declared = KNOWN[name]
    assert declared.learns_from in words.DATA
    assert set(declared.needs) <= set(words.NEEDS)
    if name in SAMPLERS:
        assert declared.advantage in words.NORMALISED
        assert declared.level in words.LEVELS
        assert declared.aggregation in words.AGGREGATIONS
        assert declared.sampling in words.SAMPLING
        assert set(declared.reward_terms) <= set(words.REWARD_TERMS)


def kinds_of_runs():
    """Returns one algorithm for each set of metrics that the guide asks to watch."""
    found = {}
    for name, declared in KNOWN.items():
        pairs = (declared.learns_from, declared.trains) in build.PREFERENCES
        if pairs or declared.learns_from in build.WITHOUT_PAIRS:
            found.setdefault(tuple(m.key for m in guide.to_watch(declared)), name)
    return sorted(found.values())


@pytest.mark.parametrize("name", kinds_of_runs())
def test_the_trainer_logs_what_a_page_says_to_watch(name, tmp_path, compiled):  # noqa: F811
    changes = {"reward__kl_coef": 0.01} if KNOWN[name].kl_in_reward else {}
    if "several_rewards" in KNOWN[name].needs:
        changes["reward__functions"] = "trainer_rewards:even_digits,trainer_rewards:right_digits"
    _, learner, updater = begun(
        small(tmp_path, algorithm=name, sft=None, batch__prompts=8, **changes), tmp_path
    )
    values, _ = learner.step(updater, lambda sentence: None)
    logged = {*values, *learner.evaluate()}
    assert not [m.key for m in guide.to_watch(KNOWN[name]) if m.key not in logged]


def test_nothing_measured_is_shown_of_what_was_not_run():
    text = pages.texts({}, {})["algorithms.md"]
    assert "## Measured" not in text and ".png" not in text
    assert text.count("not run") >= 3
    assert all(f"[{name}](algorithms/{name}.md)" in text for name in KNOWN)


def test_a_row_shows_mean_and_range_of_the_seeds_and_who_reached_the_goal(tmp_path):
    recorded(tmp_path, SAMPLERS[0], 0, [0.2, 0.6, 0.7], **groups(75))
    recorded(tmp_path, SAMPLERS[0], 1, [0.1, 0.3, 0.5], **groups(25))
    text = pages.texts(measure.load(tmp_path), {})["algorithms.md"]
    assert row(text, SAMPLERS[0])[1:] == [
        "0.15 (0.10–0.20)",
        "0.60 (0.50–0.70)",
        "3, 1 of 2 seeds",
        "5k, 1 of 2 seeds",
        "50",
        "45",
        "400",
        "0.50 (0.25–0.75)",
    ]


def test_a_record_that_was_cut_short_is_not_shown(tmp_path):
    recorded(tmp_path, SAMPLERS[0], 0, [0.2, 0.5])
    path = tmp_path / f"{SAMPLERS[0]}-0.jsonl"
    path.write_text("\n".join(path.read_text().split("\n")[:-1]))
    assert measure.load(tmp_path) == {}


def test_a_copy_fills_a_place_but_is_no_group_of_its_own(tmp_path):
    by_rule = {KNOWN[name].sampling: name for name in SAMPLERS}
    counts = {"sampling/useful_groups": 50, "sampling/groups_trained": 10}
    for name in by_rule.values():
        recorded(tmp_path, name, 0, [0.2, 0.5], **counts)
    text = pages.texts(measure.load(tmp_path), {})["algorithms.md"]
    cells = [
        line.split(" | ")[1:] for line in text.split("\n") if line.startswith("| copies mixed")
    ]
    assert cells == [["50", "100", "100 |"]], "5000 tokens: 10 groups in 10 steps, 50 of them new"


def test_the_gap_to_a_learned_reward_is_shown_where_a_run_kept_both(tmp_path):
    recorded(tmp_path, SAMPLERS[0], 0, [0.2], **{f"rewards/{x}/mean": 1.0 for x in ("one", "two")})
    both = {"rewards/reward_model/mean": 2.5, "rewards/task/mean": 0.25}
    for seed, after in enumerate((0.8, 0.9)):
        recorded(tmp_path, "pipeline", seed, [0.2, 0.5], **both)
        path = tmp_path / f"pipeline-{seed}.jsonl"
        *lines, summary = path.read_text().split("\n")
        stages = [{"stage": "reward_model", "before": 0.5, "after": after}]
        whole = json.dumps({**json.loads(summary), "stages": stages})
        path.write_text("\n".join([*lines, whole]))
    text = pages.texts(measure.load(tmp_path), {})["algorithms.md"]
    assert "| pipeline | `rewards/reward_model/mean` | 2.500 | 2.500 |" in text
    assert "| pipeline | reward_model | 0.50 | 0.85 (0.80–0.90) |" in text
    assert "rewards/one/mean" not in text


def test_what_policies_of_judgements_answer_stands_beside_the_order_of_their_pairs(tmp_path):
    recorded(tmp_path, "dpo", 0, [0.5, 0.9], **{"eval/accuracy_sampled": 0.125})
    recorded(tmp_path, "reward_model", 0, [0.5, 0.75])
    text = pages.texts(measure.load(tmp_path), {})["algorithms.md"]
    assert "| [dpo](algorithms/dpo.md) | 0.12 | 0.12 |" in text
    assert text.count("[reward_model](algorithms/reward_model.md) | 0.") == 1


def test_a_note_reaches_the_page_of_its_algorithm_and_the_overview(tmp_path):
    recorded(tmp_path, SAMPLERS[0], 0, [0.2, 0.5])
    made = pages.texts(measure.load(tmp_path), {SAMPLERS[0]: "It warms up first."})
    assert made[f"algorithms/{SAMPLERS[0]}.md"].endswith("It warms up first.\n")
    assert (
        f"[{SAMPLERS[0]}](algorithms/{SAMPLERS[0]}.md): It warms up first." in made["algorithms.md"]
    )
