# SPDX-License-Identifier: Apache-2.0
"""On-policy distillation in the trainer: the teacher, its scores and what is refused."""

import pytest
import torch
from trainer_helpers import (
    begun,
    compiled,  # noqa: F401
    even_teacher,
    loaded,
    settings,
    small,
    tiny_policy,
)

import rlkern
from rlkern.trainer import UserError, pipeline
from rlkern.trainer.models.load import load_policy
from rlkern.trainer.models.policy import token_logprob
from rlkern.trainer.processes.world import World
from rlkern.trainer.settings import Layer, resolve

pytestmark = pytest.mark.usefixtures("compiled")
NAME = "on_policy_distillation"
CPU = torch.device("cpu")


def test_the_loss_gets_what_the_teacher_thinks_of_each_sampled_token(tmp_path, monkeypatch):
    seen = []

    def policy_loss(*arguments, **options):
        seen.append(options)
        return original(*arguments, **options)

    original = rlkern.linear_policy_loss
    monkeypatch.setattr(rlkern, "linear_policy_loss", policy_loss)
    given = small(tmp_path, algorithm=NAME, sft=None, rollout__group_size=1, batch__epochs=2)
    parts, learner, updater = begun(given, tmp_path)
    before = {name: p.clone() for name, p in parts.teacher.model.named_parameters()}
    rows = learner._scored(rollout := _rollout(parts))
    teacher = load_policy(tmp_path / "teacher", device=CPU, dtype="float32")
    with torch.no_grad():
        expected = token_logprob(teacher, rollout, given) - token_logprob(
            parts.policy, rollout, given
        )
    torch.testing.assert_close(rows.teacher_logprob - rows.old_logprob, expected)
    learner.step(updater, lambda sentence: None)
    first, second = (x["advantage"] for x in seen)
    assert first.shape == seen[0]["mask"].shape and first[seen[0]["mask"]].any()
    assert not first[~seen[0]["mask"]].any() and first.equal(second)
    after = dict(parts.teacher.model.named_parameters())
    assert all(after[name].equal(p) and not after[name].requires_grad for name, p in before.items())


def _rollout(parts):
    from rlkern.trainer.collect import generate

    items, _ = parts.task.next_items(0, 4)
    return generate(parts, parts.policy, items, parts.sampling, 1)


def test_a_student_comes_near_its_teacher_and_no_reward_is_looked_at(tmp_path):
    given = small(tmp_path, algorithm=NAME, sft=None, batch__prompts=8, optimizer__lr=3e-3,
                  reward__functions="trainer_rewards:nothing")  # fmt: skip
    parts, learner, updater = begun(given, tmp_path)

    def divergence():
        rows = learner._scored(_rollout(parts))
        return (rows.old_logprob - rows.teacher_logprob)[rows.mask].mean().item()

    before = divergence()
    for _ in range(12):
        learner.step(updater, lambda sentence: None)
    assert before > 0.3 and divergence() < before / 2


@pytest.mark.parametrize("teacher", [None, "tiny"])
def test_a_teacher_that_knows_nothing_is_refused(teacher):
    with pytest.raises(UserError, match="learns from another model, so teacher must be .*, got"):
        settings(algorithm=NAME, teacher=teacher)


def test_a_teacher_with_other_tokens_or_none_at_all_is_refused(tmp_path):
    tiny_policy(alphabet="abc").save(tmp_path / "letters")
    with pytest.raises(
        UserError, match="teacher .*letters' must have the tokenizer of model 'tiny'"
    ):
        loaded(small(tmp_path, algorithm=NAME, sft=None, teacher=str(tmp_path / "letters")))
    with pytest.raises(UserError, match="there is no model 'nowhere'"):
        loaded(small(tmp_path, algorithm=NAME, sft=None, teacher="nowhere"))
    with pytest.raises(UserError, match="teacher is read by runs that learn from a teacher"):
        resolve(Layer("x", {"algorithm": "grpo", "teacher": str(even_teacher(tmp_path / "t"))}))


def test_a_stage_before_can_be_the_teacher(tmp_path):
    document = {
        "model": "tiny",
        "output.dir": str(tmp_path),
        "stages": [
            {"algorithm": "reinforce", "name": "teacher", "sft": None},
            {"algorithm": NAME, "model": "tiny", "teacher": "stage:teacher", "sft": None},
        ],
    }
    stages = pipeline.plan(tmp_path / "p", pipeline.stages_of(document, {}, "a file"))
    pipeline.check_stages(stages, World())
    (stages[0].folder / "checkpoint-3").mkdir(parents=True)
    found = pipeline.settings_of(stages[1], stages)
    assert found.teacher == str((stages[0].folder / "checkpoint-3").resolve())
    assert found.model == "tiny"
    document["stages"][1]["teacher"] = "stage:nobody"
    with pytest.raises(UserError, match="teacher names stage:nobody, but no stage before it"):
        pipeline.plan(tmp_path / "p", pipeline.stages_of(document, {}, "a file"))
