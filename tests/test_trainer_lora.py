# SPDX-License-Identifier: Apache-2.0
"""Adapters are trained in place of the weights and stored alone; their base is the reference."""

import dataclasses

import pytest
import torch
from rollout_helpers import score
from trainer_helpers import ragged_rollout, settings, small, tiny_policy, without_times

from rlkern.cli import main
from rlkern.runs.logs import read_metrics
from rlkern.trainer import UserError, loop, train
from rlkern.trainer.models import lora
from rlkern.trainer.models.load import (
    check_model_name,
    export_merged,
    load_policy,
    make_policy,
    recomputing,
)
from rlkern.trainer.models.policy import hidden_states

pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
CPU = {"device": torch.device("cpu"), "dtype": "float32"}
TARGETS = ("all-linear", "q_proj,lm_head")


def adapted(targets="all-linear", base="../base", *, zero=False):
    """Returns a policy with adapters that add something, unless they are as they start."""
    plain = tiny_policy()
    asked = settings(lora__rank=4, lora__targets=targets).lora
    model = lora.with_adapters(plain.model, asked, base=base, seed=0)
    policy = dataclasses.replace(plain, model=model)
    with torch.no_grad():
        for name, x in policy.parameters().items():
            if "lora_B" in name and not zero:
                x.copy_(
                    0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(len(name)))
                )
    return policy


def scores(policy, rollout):
    """Returns the log-probabilities of a rollout under a policy."""
    return score(policy, rollout, parts=1)


@pytest.fixture(scope="module")
def rollout():
    """Returns answers of the model without adapters."""
    return ragged_rollout(tiny_policy())


@pytest.mark.parametrize("targets", TARGETS)
def test_fresh_adapters_add_nothing_and_are_all_that_is_trained(rollout, targets):
    policy = adapted(targets, zero=True)
    torch.testing.assert_close(scores(policy, rollout), scores(tiny_policy(), rollout))
    assert policy.parameters() and all("lora_" in name for name in policy.parameters())


def test_fresh_adapters_depend_on_the_seed_and_on_nothing_drawn_before():
    def drawn(seed):
        torch.rand(1)
        asked = settings(lora__rank=4).lora
        model = lora.with_adapters(tiny_policy().model, asked, base="", seed=seed)
        return torch.cat([x.flatten() for name, x in model.named_parameters() if "lora_A" in name])

    first = drawn(0)
    assert torch.equal(drawn(0), first) and not torch.equal(drawn(1), first)


@pytest.mark.parametrize("targets", TARGETS)
def test_the_base_is_the_reference_without_a_copy(rollout, targets):
    policy = adapted(targets)
    reference = policy.without_adapters()
    trained = scores(policy, rollout)
    assert torch.equal(scores(reference, rollout), scores(tiny_policy(), rollout))
    assert torch.equal(scores(policy, rollout), trained)
    assert (trained - scores(reference, rollout)).abs().max() > 1e-3
    assert reference.model is policy.model
    assert all(p.requires_grad for name, p in policy.model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_are_stored_alone_and_come_back_exactly(tmp_path, rollout, targets):
    policy = adapted(targets)
    tiny_policy().save(tmp_path / "base")
    policy.save(tmp_path / "checkpoint-1")
    stored = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert "adapter_model.safetensors" in stored and "model.safetensors" not in stored
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("base", "checkpoint-1"):
        (tmp_path / name).rename(moved / name)
    again = load_policy(moved / "checkpoint-1", **CPU)
    assert again.parameters().keys() == policy.parameters().keys()
    assert torch.equal(scores(again, rollout), scores(policy, rollout))


@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_are_added_to_the_weights_of_a_model_that_a_run_starts_from(
    tmp_path, rollout, targets
):
    policy = adapted(targets)
    tiny_policy().save(tmp_path / "base")
    policy.save(tmp_path / "best")
    check_model_name(str(tmp_path / "best"))
    start = make_policy(str(tmp_path / "best"), alphabet="", seed=0, **CPU)
    assert all(p.requires_grad for p in start.model.parameters())
    torch.testing.assert_close(scores(start, rollout), scores(policy, rollout))
    export_merged(tmp_path / "best", tmp_path / "whole")
    assert not (tmp_path / "whole" / lora.ADAPTER).exists()
    whole = load_policy(tmp_path / "whole", **CPU)
    torch.testing.assert_close(scores(whole, rollout), scores(policy, rollout))


@pytest.mark.parametrize("targets, tied", (("all-linear", True), ("lm_head", False)))
def test_a_head_stays_tied_unless_one_of_the_two_has_an_adapter(targets, tied):
    whole = lora.merged(adapted(targets).model)
    head, table = whole.get_output_embeddings().weight, whole.get_input_embeddings().weight
    assert (head is table) == whole.config.tie_word_embeddings == tied


def test_an_adapter_of_a_tied_head_leaves_the_embeddings_alone(tmp_path):
    policy = adapted("lm_head")
    embedding = policy.model.get_input_embeddings().weight.clone()
    whole = lora.merged(policy.model)
    assert torch.equal(whole.get_input_embeddings().weight, embedding)
    assert not torch.equal(whole.get_output_embeddings().weight, embedding)


def test_an_adapter_of_tied_embeddings_leaves_the_head_alone(rollout):
    import peft

    config = peft.LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    policy = tiny_policy()
    policy = dataclasses.replace(policy, model=peft.get_peft_model(policy.model, config).eval())
    with torch.no_grad():
        for x in policy.parameters().values():
            x.copy_(0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    expected = scores(policy, rollout)
    assert (expected - scores(tiny_policy(), rollout)).abs().max() > 1e-2
    whole = dataclasses.replace(policy, model=lora.merged(policy.model))
    torch.testing.assert_close(scores(whole, rollout), expected, rtol=1e-4, atol=1e-4)


def test_adapters_that_cannot_be_added_to_the_weights_are_refused():
    import peft

    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="kind PROMPT_TUNING cannot be added to the weights"):
        lora.merged(peft.get_peft_model(tiny_policy().model, config))


def test_a_missing_base_is_one_sentence(tmp_path):
    adapted().save(tmp_path / "checkpoint-1")
    with pytest.raises(UserError, match="there is no model '../base'"):
        check_model_name(str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("targets", ("q_proj,w_proj", "", "embed_tokens"))
def test_targets_that_are_not_layers_are_refused(targets):
    with pytest.raises(UserError, match="lora.targets must"):
        adapted(targets)


def gradients(policy, rollout):
    """Returns the gradient of a number made of a rollout's hidden states."""
    policy.model.zero_grad()
    hidden_states(policy, rollout, share_prompts=False).square().sum().backward()
    return {name: p.grad.clone() for name, p in policy.parameters().items() if p.grad is not None}


@pytest.mark.parametrize("mixed", (False, True))
@pytest.mark.parametrize("make", (tiny_policy, adapted))
def test_recomputing_layers_changes_no_gradient(rollout, make, mixed):
    policy = dataclasses.replace(make(), mixed=mixed)
    stored = gradients(policy, rollout)
    policy = recomputing(policy)
    calls = count_layer_calls(policy)
    recomputed = gradients(policy, rollout)
    assert stored.keys() == recomputed.keys()
    for name, grad in stored.items():
        assert torch.equal(recomputed[name], grad), name
    assert calls == {"mlp": 4}  # two layers, each run again
    assert not policy.model.training


def count_layer_calls(policy):
    """Returns a dict that counts how often an MLP of the model runs from now on."""
    calls = {"mlp": 0}

    def count(*_):
        calls["mlp"] += 1

    for name, module in policy.model.named_modules():
        if name.endswith(".mlp"):
            module.register_forward_pre_hook(count)
    return calls


def test_a_model_with_dropout_is_not_recomputed():
    policy = tiny_policy()
    policy.model.config.attention_dropout = 0.1
    with pytest.raises(UserError, match="no dropout, got {'attention_dropout': 0.1}"):
        recomputing(policy)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the directory of a run of adapters, and that of the same run after a resume."""
    folder = tmp_path_factory.mktemp("adapters")
    changes = {
        "sft__steps": 2, "eval__items": 8, "eval__every": 2, "output__save_every": 2,
        "lora__rank": 4, "lora__targets": "all-linear,lm_head", "coefficients__kl_coef": 0.05,
    }  # fmt: skip
    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "plot_curves", lambda *_, **__: None)
    train(small(folder, name="resumed", steps=2, **changes))
    train(small(folder, name="resumed", steps=4, **changes), resume=True)
    train(small(folder, name="whole", steps=4, **changes))
    patch.undo()
    return folder / "runs" / "whole", folder / "runs" / "resumed"


def test_a_resumed_run_of_adapters_is_the_uninterrupted_one(run):
    whole, resumed = (without_times(read_metrics(folder)) for folder in run)
    assert len(whole) == 5 and resumed == whole
    assert max(line["kl"] for line in whole[1:]) > 0  # to the base, from which adapters moved away


def test_a_run_keeps_the_base_once_and_no_reference(run):
    whole, _ = run
    weights = sorted(str(x.relative_to(whole)) for x in whole.rglob("model.safetensors"))
    assert weights == ["base/model.safetensors"]
    assert not (whole / "reference").exists()
    names = {x.parent.name for x in whole.rglob("adapter_model.safetensors")}
    assert {"checkpoint-2", "checkpoint-4"} <= names and any("best-" in name for name in names)


def test_a_run_of_adapters_is_evaluated_and_started_from(run, capsys):
    whole, _ = run
    assert main(["eval", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    start = make_policy(str(whole / "checkpoint-4"), alphabet="", seed=0, **CPU)
    assert not lora.is_adapted(start.model)
