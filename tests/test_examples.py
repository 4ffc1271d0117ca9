# SPDX-License-Identifier: Apache-2.0
"""The example learns, reads a model from a folder, and masks what is not part of an answer."""

import importlib.util
from pathlib import Path

import pytest
import torch
from trainer_helpers import compiled  # noqa: F401

pytest.importorskip("transformers")

PAGE = Path(__file__).resolve().parents[1] / "examples" / "grpo.py"


@pytest.fixture(scope="module")
def grpo():
    """Returns the example as a module."""
    spec = importlib.util.spec_from_file_location("grpo_example", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rolled_out(grpo):
    """Returns (model, tokenizer, ids, seen, P): an untrained model ends its answers at random."""
    torch.manual_seed(0)
    model, tokenizer = grpo.make_model()
    ids, seen, P, _ = grpo.rollout(model, tokenizer, [("12+34=", "046"), ("2+3=", "005")] * 40)
    return model, tokenizer, ids, seen, P


def test_the_page_stays_a_page():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 150


def test_reinforcement_raises_the_held_out_accuracy(grpo, compiled):  # noqa: F811
    before, after = grpo.main(supervised=150, steps=30)
    assert after > before + 0.05


def test_an_answer_ends_with_its_first_newline_and_nothing_behind_it_counts(grpo):
    _, tokenizer, ids, seen, P = rolled_out(grpo)
    newline, lengths = tokenizer.eos_token_id, set()
    for token, counts in zip(ids[:, P:].tolist(), seen[:, P:].tolist()):
        length = token.index(newline) + 1 if newline in token else len(token)
        assert counts == [1] * length + [0] * (len(token) - length)
        lengths.add(length)
    assert len(lengths) > 2


def test_padding_on_either_side_changes_no_log_probability(grpo):
    model, tokenizer, ids, seen, P = rolled_out(grpo)
    head = model.get_output_embeddings()
    hidden, token, mask = grpo.answers(model, ids, seen, P)
    padded = head(hidden).log_softmax(-1).gather(-1, token[..., None])[..., 0]
    for b in range(4):
        row = ids[b, seen[b].bool()][None]
        own = model(row).logits.log_softmax(-1)[0, :-1].gather(-1, row[0, 1:, None])[:, 0]
        torch.testing.assert_close(padded[b, mask[b]], own[-int(mask[b].sum()) :])


def test_padding_takes_no_place(grpo):
    assert grpo.positions(torch.tensor([[0, 0, 1, 1, 1]])).tolist() == [[0, 0, 0, 1, 2]]


def test_a_folder_in_hugging_face_format_serves_as_the_model(grpo, tmp_path):
    torch.manual_seed(0)
    for part in grpo.make_model():
        part.save_pretrained(tmp_path)
    before, after = grpo.main(str(tmp_path), supervised=0, steps=1, questions=2)
    assert before == after == 0.0


def test_an_answer_is_right_to_its_last_character(grpo):
    assert [grpo.reward(text, "046") for text in ("046", "046\n12", "46", "0461")] == [1, 1, 0, 0]
