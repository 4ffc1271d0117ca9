# SPDX-License-Identifier: Apache-2.0
"""Preference pairs: read, split, sampled and kept as they should be, or refused in a sentence."""

import dataclasses
import json
import sys

import pytest
import torch
from trainer_helpers import small, small_parts

from rlkern.trainer import UserError, preflight
from rlkern.trainer.offline import pairs as module
from rlkern.trainer.offline.pairs import (
    Judgement,
    Pair,
    Pairs,
    check_source,
    given_pairs,
    kept_pairs,
    read,
)
from rlkern.trainer.offline.preferences import Scored, judged_rows, pair_rows
from rlkern.trainer.offline.sampled import sampled_pairs
from rlkern.trainer.offline.statements import PROMPT, facts_file, statements
from rlkern.trainer.processes.world import World

LINES = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": str(n)} for n in range(40)]


def write_lines(path, lines=LINES):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def fake_package(folder, entries, monkeypatch):
    """Makes a package that must not be imported, with a file of statements in it."""
    inside = folder / "textarena" / "envs" / "TruthAndDeception"
    inside.mkdir(parents=True)
    (folder / "textarena" / "__init__.py").write_text("raise RuntimeError('was imported')\n")
    (inside / "facts.json").write_text(json.dumps(entries))
    monkeypatch.syspath_prepend(str(folder))


def test_a_file_of_pairs_is_read_line_by_line(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{**LINES[0], "source": "x"}, LINES[1]])
    path.write_text(path.read_text() + "\n")
    assert read(path) == [Pair("0+1=", "1", "0"), Pair("1+1=", "2", "1")]


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 3 must be a JSON object"),
        ("[1, 2]", "line 3 must be a JSON object, got list"),
        ('{"prompt": "a", "chosen": "b"}', "line 3 must have a text 'rejected', got None"),
        ('{"prompt": "a", "chosen": ["b"], "rejected": "c"}', "line 3 must have a text 'chosen'"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "line 3 must have two different"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path, line, words):
    path = write_lines(tmp_path / "p.jsonl", LINES[:2])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=words):
        read(path)


@pytest.mark.parametrize(
    "pairs, words",
    [
        ("facts", r"pip install --no-deps TextArena==0\.7\.4"),
        ("nowhere.jsonl", "there is nothing at .nowhere.jsonl"),
        (
            "pairs.csv",
            "pairs.source must be sampled, data, facts or a .jsonl file, got 'pairs.csv'",
        ),
        ("empty.jsonl", "must hold rows, it is empty"),
    ],
)
def test_pairs_that_are_not_there_are_refused_before_a_model_is_loaded(
    tmp_path, monkeypatch, pairs, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=words):
        preflight.check(small(tmp_path, algorithm="dpo", pairs__source=pairs), World())
    assert not (tmp_path / "runs").exists()


def test_a_fifth_of_given_pairs_is_held_out_by_the_seed(tmp_path):
    path = write_lines(tmp_path / "p.jsonl")
    config = small(tmp_path, algorithm="dpo", pairs__source=str(path), eval__items=100)
    found, again = given_pairs(config), given_pairs(config)
    assert len(found.held_out) == 8 and len(found.train) == 32
    assert found == again and sorted(p.prompt for p in found.train + found.held_out) == sorted(
        line["prompt"] for line in LINES
    )
    other = small(tmp_path, algorithm="dpo", pairs__source=str(path), eval__items=5, seed=1)
    assert len(given_pairs(other).held_out) == 5
    assert given_pairs(other).held_out[0] != found.held_out[0]


def test_pairs_that_leave_no_batch_are_refused(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", LINES[:6])
    with pytest.raises(UserError, match="must leave a batch of 6 .* got 6 pairs"):
        given_pairs(small(tmp_path, algorithm="dpo", pairs__source=str(path), batch__prompts=6))


def test_statements_are_read_without_importing_the_package(tmp_path, monkeypatch):
    facts = {"fact1": "Ice is cold.", "fact2": "Ice is hot."}
    entries = [{"facts": facts, "correct_fact": name} for name in facts]
    fake_package(tmp_path, entries, monkeypatch)
    assert statements() == [("Ice is cold.", "Ice is hot."), ("Ice is hot.", "Ice is cold.")]
    assert "textarena" not in sys.modules
    config = small(tmp_path, algorithm="dpo", pairs__source="facts", batch__prompts=1)
    with pytest.raises(UserError, match="got 2 pairs"):
        check_source(config)


def test_a_file_of_statements_of_another_form_is_refused(tmp_path, monkeypatch):
    fake_package(tmp_path, [{"facts": {"fact1": "One."}, "correct_fact": "fact1"}], monkeypatch)
    with pytest.raises(UserError, match="facts.json of TextArena cannot be read"):
        statements()


def test_the_package_has_260_statements_where_it_is_installed(tmp_path):
    try:
        facts_file()
    except UserError as error:
        pytest.skip(str(error))
    found = given_pairs(small(tmp_path, algorithm="dpo", pairs__source="facts", eval__items=60))
    assert (len(found.train), len(found.held_out)) == (208, 52)
    assert {p.prompt for p in found.train} == {PROMPT}


@pytest.fixture
def parts(tmp_path):
    """Returns the parts of a run whose untrained model ends an answer at every second digit."""
    found = small_parts(
        tmp_path, algorithm="dpo", pairs__items=24, eval__items=12, rollout__group_size=6
    )
    digits = torch.tensor(found.policy.tokenizer.encode("13579"))
    sampling = found.sampling.__class__(
        max_new_tokens=4, stop=torch.cat([found.sampling.stop, digits])
    )
    return dataclasses.replace(found, sampling=sampling)


def test_sampled_pairs_are_sorted_by_the_reward_and_held_out_by_prompt(parts):
    found = sampled_pairs(parts)
    assert 4 <= len(found.train) <= 24 and 1 <= len(found.held_out) <= 12
    for pair in found.train + found.held_out:
        better, worse = parts.rewards.functions[0]([pair.prompt] * 2, [pair.chosen, pair.rejected])
        assert better > worse
    held = {item.prompt for item in parts.task.held_out}
    assert {p.prompt for p in found.held_out} <= held
    assert not {p.prompt for p in found.train} & held


def test_answers_that_were_cut_off_are_no_examples(parts):
    found = sampled_pairs(parts)
    for pair in found.train + found.held_out:
        for ids in pair.ids[1:]:
            assert len(ids) < 4 or ids[-1] in parts.sampling.stop, ids


def test_sampled_pairs_are_the_same_for_the_same_seed(parts):
    first = sampled_pairs(parts)
    parts.generator.manual_seed(parts.settings.seed)
    assert sampled_pairs(parts) == first


def test_sampled_pairs_keep_the_tokens_that_the_model_wrote(parts, tmp_path):
    found = sampled_pairs(parts)
    module.write(found, tmp_path)
    assert kept_pairs(tmp_path) == found
    # Tokens whose text would be encoded as others: they are taken, not the text.
    one, two = parts.policy.tokenizer.encode("12")
    eos = parts.policy.tokenizer.eos_token_id
    given = Pair("7", "8", "9", ([one], [two, two, eos], [one, eos]))
    rows = pair_rows(parts, [given])
    assert [row[real].tolist() for row, real in zip(rows.prompt, rows.prompt_mask)] == [[one]]
    said = [row[real].tolist() for row, real in zip(rows.token, rows.mask)]
    assert said == [[two, two, eos], [one, eos]]
    # A file of somebody else's has the ids of another tokenizer.
    path = write_lines(tmp_path / "p.jsonl", [{**LINES[0], "ids": [[1], [2], [3]]}])
    assert read(path) == [Pair("0+1=", "1", "0")]


def with_task(parts, **changes):
    return dataclasses.replace(parts, task=dataclasses.replace(parts.task, **changes))


def test_of_a_long_prompt_as_many_tokens_are_kept_as_of_a_sampled_one(parts):
    short = with_task(parts, keep=2)
    encode = parts.policy.tokenizer.encode
    for rows in (
        pair_rows(short, [Pair("12+34=", "46", "47")]),
        judged_rows(short, [Judgement("12+34=", "46", True)]),
    ):
        assert rows.prompt[0].tolist() == encode("4=")


def test_a_reward_model_learns_from_answers_that_end_with_the_end_of_text(parts):
    stopped, eos = with_task(parts, stop="="), parts.policy.tokenizer.eos_token_id
    given = [Pair("7+1=", "8=", "9=")]
    sampled = pair_rows(stopped, given).token[0]
    assert sampled.tolist() == parts.policy.tokenizer.encode("8=")
    assert Scored(stopped, Pairs([], [])).rows(given).token[:, -1].tolist() == [eos, eos]


def test_too_few_pairs_say_how_to_get_more(parts):
    parts.rewards.functions[0] = lambda prompts, completions: [1.0] * len(prompts)
    with pytest.raises(UserError, match="only 0 of 24 training prompts .* raise pairs.items"):
        sampled_pairs(parts)


def test_a_run_keeps_both_files_of_pairs_or_none(tmp_path, monkeypatch):
    pairs = Pairs([Pair("1+1=", "2\u2028é", "")], [Pair("2+2=", "4", "5")])
    assert kept_pairs(tmp_path) is None
    module.write(pairs, tmp_path)
    assert kept_pairs(tmp_path) == pairs

    def broken(*arguments, **named):
        raise OSError("the disk is full")

    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr(module.json, "dumps", broken)
    with pytest.raises(OSError):
        module.write(pairs, other)
    assert kept_pairs(other) is None
