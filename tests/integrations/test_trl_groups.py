# SPDX-License-Identifier: Apache-2.0
"""DAPO's dynamic sampling and DUPO's refill inside TRL's GRPOTrainer."""

import pytest
import torch

pytest.importorskip("trl")

import trl  # noqa: E402
from datasets import Dataset  # noqa: E402

from rlkern.integrations import PatchError  # noqa: E402
from rlkern.integrations.trl_groups import DuplicatedGroups, DynamicSampling  # noqa: E402

from .trl_runs import PROMPTS, compared, logged, made, reward  # noqa: E402

G = 4
EASY = {"a b c", "f g h i", "j k l", "o p q r", "s t"}  # every answer gets 1


class Dynamic(DynamicSampling, trl.GRPOTrainer):
    rounds = 30


class Duplicated(DuplicatedGroups, trl.GRPOTrainer):
    pass


def counted(prompts: list[str], **_) -> list[float]:
    """Returns rewards that differ within each group."""
    return [i % G / G for i in range(len(prompts))]


class Judge:
    """Gives an answer what its letters say, or 1 to an easy prompt; remembers the prompts."""

    __name__ = "judge"

    def __init__(self, easy=frozenset(EASY)) -> None:
        self.easy, self.asked = easy, []

    def __call__(self, prompts: list[str], completions: list[str], **_) -> list[float]:
        self.asked += prompts[::G]
        bare = zip(prompts, reward(completions))
        # One part in a hundred of the place: no group of a hard prompt agrees by chance.
        return [1.0 if p in self.easy else r + i % G / 100 for i, (p, r) in enumerate(bare)]


def trainer(kind, model, tmp_path, judge, **options):
    """Returns a trainer of four prompts a batch that has not begun."""
    found = made(
        "grpo", model, tmp_path, trainer_type=kind, reward_funcs=judge,
        per_device_train_batch_size=4 * G, **options,
    )  # fmt: skip
    found.model.train()
    return found


def batch(found, prompts: list[str]) -> tuple[dict, list[str], dict[str, float]]:
    """Returns what a trainer makes of prompts, the prompt of each row, and the groups' metrics."""
    made_of = found._generate_and_score_completions(
        [{"prompt": p} for p in prompts for _ in range(G)]
    )
    texts = found.processing_class.batch_decode(made_of["prompt_ids"], skip_special_tokens=True)
    metrics = found._metrics["train"]
    return made_of, texts, {k: v[-1] for k, v in metrics.items() if k.startswith("groups/")}


def assert_whole(found, rows: dict, texts: list[str], judge: Judge) -> None:
    """Each group is of one prompt, and its advantages are those of its own answers."""
    answers = found.processing_class.batch_decode(rows["completion_ids"], skip_special_tokens=True)
    for first in range(0, len(texts), G):
        group = slice(first, first + G)
        assert len(set(texts[group])) == 1
        r = torch.tensor(judge(texts[group], answers[group]))
        expected = (r - r.mean()) / (r.std() + 1e-4)
        torch.testing.assert_close(rows["advantages"][group], expected, rtol=1e-4, atol=1e-5)
    assert int(rows["num_items_in_batch"]) == int(rows["completion_mask"].sum())


@pytest.mark.parametrize("kind", [Dynamic, Duplicated])
def test_a_run_whose_rewards_differ_logs_what_trl_logs(kind, model, tmp_path):
    options = {"reward_funcs": counted, "per_device_train_batch_size": 2 * G}
    plain = logged(made("grpo", model, tmp_path, **options))
    ours = logged(made("grpo", model, tmp_path, trainer_type=kind, **options))
    for before, after in zip(compared(plain), compared(ours)):
        groups = {k: after.pop(k) for k in list(after) if k.startswith("groups/")}
        assert before == pytest.approx(after, rel=1e-6, nan_ok=True)
        assert "loss" not in before or set(groups.values()) <= {0.0, 2.0}


def test_dynamic_sampling_fills_the_batch_with_other_prompts(model, tmp_path):
    judge = Judge()
    found = trainer(Dynamic, model, tmp_path, judge, beta=0.04, num_iterations=2)
    rows, texts, metrics = batch(found, PROMPTS[:4])
    asked = list(judge.asked)
    dropped = sum(p in EASY for p in asked)
    assert len(asked) > 4 and len(texts) == 4 * G and not EASY & set(texts)
    assert metrics == {
        "groups/sampled": len(asked), "groups/dropped": dropped, "groups/empty": 0
    }  # fmt: skip
    assert texts[:G] == ["d e"] * G  # of the first round, in its order
    assert_whole(found, rows, texts, judge)
    widths = {x.shape for k, x in rows.items() if "logps" in k or k == "completion_mask"}
    assert widths == {rows["completion_ids"].shape}


def test_what_the_rounds_leave_empty_trains_nothing(model, tmp_path):
    easy = Judge(frozenset(PROMPTS) - {"d e"})
    found = trainer(type("Once", (Dynamic,), {"rounds": 1}), model, tmp_path, easy)
    rows, texts, metrics = batch(found, PROMPTS[:4])
    assert metrics == {"groups/sampled": 4, "groups/dropped": 3, "groups/empty": 3}
    assert texts[:G] == ["d e"] * G and rows["completion_mask"][:G].any(1).all()
    assert not rows["completion_mask"][G:].any()
    assert int(rows["num_items_in_batch"]) == int(rows["completion_mask"][:G].sum())
    found.current_gradient_accumulation_steps = 1  # which train() would set
    alone = {k: x[:G] if x.ndim else x for k, x in rows.items()}
    losses = [found._compute_loss(found.model, x).item() for x in (rows, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != 0


@pytest.mark.parametrize("kind", [Dynamic, Duplicated])
def test_a_step_without_a_mixed_group_has_no_gradient(kind, model, tmp_path):
    twice = type("Twice", (kind,), {"rounds": 2})
    (entry, *_) = logged(trainer(twice, model, tmp_path, Judge(frozenset(PROMPTS)), max_steps=1))
    assert entry["grad_norm"] == 0 and entry["loss"] == 0 and entry["groups/empty"] == 4
    assert entry.get("groups/dropped", 8) == 8 and entry.get("groups/refilled", 0) == 0


def test_the_refill_copies_groups_of_the_same_batch(model, tmp_path):
    judge = Judge()
    found = trainer(Duplicated, model, tmp_path, judge, beta=0.04)
    asked = ["a b c", "d e", "m n", "j k l"]
    rows, texts, metrics = batch(found, asked)
    assert judge.asked == asked  # nothing more was sampled
    assert metrics == {"groups/refilled": 2, "groups/empty": 0}
    assert texts[G : 3 * G] == ["d e"] * G + ["m n"] * G  # what differs keeps its place
    assert sorted(texts[::G]) == ["d e", "d e", "m n", "m n"]
    assert_whole(found, rows, texts, judge)
    for name, x in rows.items():
        if x.ndim:
            first = 0 if texts[0] == "d e" else 3 * G
            assert torch.equal(x[first : first + G], x[G : 2 * G]), name


def test_evaluation_is_as_it_was(model, tmp_path):
    found = trainer(Dynamic, model, tmp_path, Judge())
    found.model.eval()
    _, texts, metrics = batch(found, PROMPTS[:4])
    assert set(texts) & EASY and not metrics


@pytest.mark.parametrize("kind", [Dynamic, Duplicated])
@pytest.mark.parametrize(
    "options,expected",
    [
        ({"scale_rewards": "batch"}, "scale_rewards must be group or none.*got 'batch'"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            "aggregation must be sum_then_normalize",
        ),
    ],
)
def test_advantages_that_depend_on_dropped_groups_are_refused(
    kind, options, expected, model, tmp_path
):
    with pytest.raises(ValueError, match=expected):
        trainer(kind, model, tmp_path, counted, **options)


def test_what_dynamic_sampling_cannot_draw_from_is_refused(model, tmp_path):
    stream = Dataset.from_dict({"prompt": PROMPTS}).to_iterable_dataset()
    with pytest.raises(ValueError, match="must be one that can be indexed"):
        trainer(Dynamic, model, tmp_path, counted, train_dataset=stream)
    with pytest.raises(ValueError, match="rounds must be an int of at least 1, got 0"):
        trainer(type("Never", (Dynamic,), {"rounds": 0}), model, tmp_path, counted)
    found = trainer(Dynamic, model, tmp_path, counted)
    with pytest.raises(ValueError, match="must be text, whose columns are known, got pixel_values"):
        found._of_all_processes({"pixel_values": torch.zeros(1)})


def test_a_method_of_another_signature_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        trl.GRPOTrainer, "_generate_and_score_completions", lambda self, inputs, mode: None
    )
    with pytest.raises(PatchError, match=r"must take \(self, inputs\).*got \(self, inputs, mode\)"):
        trainer(Dynamic, model, tmp_path, counted)


def test_a_mix_in_in_the_wrong_place_is_refused(model, tmp_path):
    with pytest.raises(TypeError, match="DynamicSampling must stand before GRPOTrainer"):
        type("Behind", (trl.GRPOTrainer, DynamicSampling), {})
    with pytest.raises(TypeError, match="DynamicSampling and DuplicatedGroups cannot be combined"):
        type("Both", (DynamicSampling, DuplicatedGroups, trl.GRPOTrainer), {})
    with pytest.raises(TypeError, match="Other: must be a GRPOTrainer"):
        type("Other", (DynamicSampling, trl.RLOOTrainer), {})()


@pytest.mark.parametrize("rounds", ["3", None, 2.5, 0])
def test_rounds_must_be_a_number_of_rounds(rounds, model, tmp_path):
    kind = type("Rounds", (Dynamic,), {"rounds": rounds})
    with pytest.raises(ValueError, match="rounds must be an int of at least 1"):
        trainer(kind, model, tmp_path, Judge())
