# SPDX-License-Identifier: Apache-2.0
"""Reward models: made from a language model, trained on pairs, stored, and asked as a reward."""

import json

import pytest
import torch
from test_trainer_offline import offline
from trainer_helpers import changed, loaded, small, tiny_policy
from trainer_helpers import compiled as compiled
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

import rlkern
from rlkern.runs.logs import read_metrics
from rlkern.trainer import UserError, train
from rlkern.trainer.models.load import load_policy
from rlkern.trainer.reward.model import (
    RewardModel,
    check_scorer,
    load_reward_model,
    load_scorer,
    make_scorer,
    right_padded,
    scores,
)
from rlkern.trainer.rollout.text import given_rows

pytestmark = pytest.mark.usefixtures("compiled")
CPU = torch.device("cpu")
PROMPTS = ["1+2=", "12+34=", "9=", "123+456="]
ANSWERS = ["3", "046", "", "579"]
(TRAINER,) = [name for name, x in rlkern.offline_algorithms().items() if x.trains != "policy"]


def scorer(seed=0):
    """Returns a reward model whose scores differ."""
    found = make_scorer(tiny_policy(seed=seed))
    torch.nn.init.normal_(found.model.score.weight, generator=torch.Generator().manual_seed(seed))
    return found


def rows_of(policy):
    return given_rows(policy, PROMPTS, ANSWERS, stop="")


def test_a_fresh_reward_model_has_the_trunk_of_the_policy_and_scores_zero():
    policy = tiny_policy()
    found = make_scorer(policy)
    assert found.model.base_model is policy.model.base_model
    assert isinstance(found.model, LlamaForSequenceClassification)
    assert scores(found, rows_of(policy)).tolist() == [0.0] * 4
    assert not any("lm_head" in name for name in found.parameters())


def test_the_score_of_an_answer_does_not_depend_on_its_padding():
    found = scorer()
    together = scores(found, rows_of(found))
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids = [*found.tokenizer.encode(prompt + answer), found.tokenizer.eos_token_id]
        alone = found.model(input_ids=torch.tensor([ids])).logits[0, 0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)


def test_rows_are_padded_on_the_right_alone():
    policy = tiny_policy()
    rows = rows_of(policy)
    wide = rows.widened(12, rows.token.shape[1] + 3)
    assert wide.prompt.shape[1] == 12 > rows.prompt.shape[1]
    pad = 7  # no id that the rows hold by themselves where they are padded
    for one in (rows, wide):
        token, seen = right_padded(one, pad)
        for row, text in enumerate(p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)):
            ids = [*policy.tokenizer.encode(text), policy.tokenizer.eos_token_id]
            assert token[row].tolist() == ids + [pad] * (token.shape[1] - len(ids))
            assert seen[row].sum() == len(ids)
        assert seen.any(0).all()


def test_a_stored_reward_model_gives_the_same_scores_here_and_to_transformers(tmp_path):
    found = scorer()
    found.save(tmp_path)
    reward = load_reward_model(tmp_path, device=CPU, dtype="float32")
    expected = scores(found, rows_of(found)).tolist()
    assert reward(prompts=PROMPTS, completions=ANSWERS, answer=["1"] * 4) == expected
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    token, seen = right_padded(rows_of(found), found.tokenizer.pad_token_id)
    with torch.no_grad():
        logits = theirs(input_ids=token, attention_mask=seen.long()).logits[:, 0]
    torch.testing.assert_close(logits, torch.tensor(expected))


def test_a_reward_is_asked_in_batches_and_without_gradient():
    found = scorer()
    whole, parts = (
        RewardModel(found)(PROMPTS, ANSWERS),
        RewardModel(found, batch=3)(PROMPTS, ANSWERS),
    )
    assert parts == pytest.approx(whole, rel=1e-5) and len({*whole}) == 4
    assert all(type(x) is float for x in whole)


def broken(folder, **changes):
    """Stores a reward model whose config.json says something else."""
    scorer().save(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    tiny_policy().save(tmp_path / "causal")
    with pytest.raises(UserError, match="one output, it holds LlamaForCausalLM; make one"):
        check_scorer(tmp_path / "causal")
    two = broken(tmp_path / "two", id2label={"0": "bad", "1": "good"})
    with pytest.raises(UserError, match="ForSequenceClassification with 2 outputs"):
        check_scorer(two)
    with pytest.raises(UserError, match="cannot be read"):
        check_scorer(tmp_path / "nowhere")
    more = broken(tmp_path / "more", num_hidden_layers=3)
    with pytest.raises(UserError, match="must hold every weight, it lacks model.layers.2"):
        load_scorer(more, device=CPU, dtype="float32")
    empty = broken(tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_scorer(empty, device=CPU, dtype="float32")


def test_a_bad_reward_model_is_refused_before_the_policy_is_loaded(tmp_path, monkeypatch):
    tiny_policy().save(tmp_path / "causal")
    monkeypatch.setattr("rlkern.trainer.build.make_policy", pytest.fail)
    with pytest.raises(UserError, match="it holds LlamaForCausalLM"):
        loaded(small(tmp_path, reward__functions=str(tmp_path / "causal")))


def once(tmp_path, **changes):
    """Returns a run that trains a reward model and evaluates and saves it at its end."""
    return offline(tmp_path, TRAINER, **{"output__save_every": 0, "eval__every": 0, **changes})


def test_a_run_makes_a_reward_model_that_another_run_takes_as_its_reward(tmp_path):
    summary = train(once(tmp_path, name="scores", steps=30, batch__prompts=8, optimizer__lr=1e-3))
    line = read_metrics(tmp_path / "runs" / "scores")[-1]
    assert not any(key.startswith("logps/") for key in line)
    assert line["eval/accuracy"] == line["eval/pair_accuracy"] == summary["eval/accuracy_after"]
    folder = str(tmp_path / "runs" / "scores" / "checkpoint-30")
    online = {"name": "online", "sft": None, "steps": 1, "eval__every": 0}
    online = small(tmp_path, **online, reward__functions=folder)
    train(online)
    line = read_metrics(tmp_path / "runs" / "online")[-1]
    assert line["rewards/reward_model/mean"] == pytest.approx(line["reward"])
    assert line["reward_std"] > 0


def test_a_reward_model_learns_which_answers_are_chosen(tmp_path):
    path = tmp_path / "ends.jsonl"
    lines = [
        {"prompt": f"{n}=", "chosen": f"{n % 7}1", "rejected": f"{n % 7}2"} for n in range(100)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    learning = {"pairs__source": str(path), "batch__prompts": 16, "optimizer__lr": 2e-3}
    summary = train(once(tmp_path, steps=40, **learning))
    assert summary["eval/accuracy_before"] == 0.5 and summary["eval/accuracy_after"] == 1.0


def test_only_the_last_layers_and_the_score_train_where_asked(tmp_path):
    config = once(tmp_path, name="part", optimizer__train_layers=1, steps=2, output__save_every=1)
    start = tiny_policy().model.base_model.state_dict()
    train(config)
    folder = tmp_path / "runs" / "part" / "checkpoint-2"
    state = load_scorer(folder, device=CPU, dtype="float32").model.base_model.state_dict()
    moved = {name for name in start if not torch.equal(start[name], state[name])}
    assert moved and all(name.startswith("layers.1.") for name in moved)
    train(changed(config, steps=3), resume=True)


def test_the_checkpoint_of_a_reward_model_is_no_policy(tmp_path):
    scorer().save(tmp_path)
    with pytest.raises(UserError, match="it lacks lm_head.weight; a reward model belongs under"):
        load_policy(tmp_path, device=CPU, dtype="float32")


def test_the_pairs_of_a_run_can_be_those_of_the_next(tmp_path):
    config = once(tmp_path, name="first", steps=1)
    train(config)
    kept = tmp_path / "runs" / "first" / "pairs" / "train.jsonl"
    train(changed(config, name="second", pairs__source=str(kept)))
    held = (tmp_path / "runs" / "second" / "pairs" / "held_out.jsonl").read_text().splitlines()
    assert len(held) == 6 and set(held) <= set(kept.read_text().splitlines())
