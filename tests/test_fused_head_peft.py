# SPDX-License-Identifier: Apache-2.0
"""fused_head over models that PEFT gave adapters: used and trained without being merged."""

import pytest
import torch
from fused_head_helpers import (
    assert_fused_is_plain,
    assert_the_same,
    batch_of,
    model_of,
    refuse,
    scores_and_gradients,
)

import rlkern

peft = pytest.importorskip("peft")

ATTENTION, BOTH = ["q_proj", "v_proj"], ["q_proj", "lm_head"]


def with_lora(targets=BOTH, r=4, **options):
    """Returns a model with adapters that are not zero; only they and what else trains have one."""
    config = peft.LoraConfig(
        r=r, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM",
        **{"lora_dropout": 0.0, **options},
    )  # fmt: skip
    model = peft.get_peft_model(model_of("Llama"), config)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "lora_" in name:
                x.copy_(0.3 * torch.randn(x.shape))
    return model


@pytest.mark.parametrize("targets", (ATTENTION, BOTH, ["lm_head"]), ids="-".join)
@pytest.mark.parametrize("rslora", (False, True))
def test_adapters_of_peft_are_used_and_trained(targets, rslora):
    model = with_lora(targets, use_rslora=rslora)
    got = scores_and_gradients(model, True)
    assert_the_same(got, scores_and_gradients(model, False))
    assert all("lora_" in name for name in got if "." in name)


def test_merged_and_disabled_adapters_of_a_head_are_what_peft_makes_of_them():
    model, (inputs, token, mask) = with_lora(), batch_of()

    def fused():
        with rlkern.fused_head(model), torch.no_grad():
            return model(**inputs, token=token, mask=mask).logprob

    def plain():
        with torch.no_grad():
            return rlkern.token_logprob(model(**inputs).logits, token, mask=mask).logprob

    active = fused()
    with model.disable_adapter():
        torch.testing.assert_close(fused(), plain())
        assert (fused() - active).abs().max() > 0.01
    model.merge_adapter()
    torch.testing.assert_close(fused(), plain())
    torch.testing.assert_close(fused(), active)


@pytest.mark.filterwarnings("ignore:.*lora_bias")
@pytest.mark.parametrize("bias", ("none", "all", "lora_only"))
def test_the_bias_of_an_adapter_of_the_head_counts(bias):
    model = with_lora(lora_bias=bias == "none", bias=bias)
    got = scores_and_gradients(model, True)
    assert_the_same(got, scores_and_gradients(model, False))
    assert any(name.endswith("lm_head.lora_B.default.bias") for name in got) == (bias == "none")


TUNERS = {
    "IA3Config": {"feedforward_modules": []},
    "LoHaConfig": {}, "LoKrConfig": {}, "OFTConfig": {"oft_block_size": 4}, "VeraConfig": {},
    "HRAConfig": {}, "MissConfig": {"r": 4}, "ShiraConfig": {"r": 4},
    "AdaLoraConfig": {"total_step": 10},
    "FourierFTConfig": {"n_frequency": 10}, "BOFTConfig": {"boft_block_size": 4},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TUNERS)
def test_other_kinds_are_right_inside_the_model_and_refused_at_its_head(kind):
    if not hasattr(peft, kind):
        pytest.skip(f"this PEFT has no {kind}")
    for targets in (ATTENTION, ["lm_head"]):
        config = getattr(peft, kind)(target_modules=targets, **TUNERS[kind])
        model = peft.get_peft_model(model_of("Llama"), config).eval()
        with torch.no_grad():
            for x in model.parameters():
                x.add_(0.1 * torch.randn(x.shape) if x.requires_grad else 0)
        if targets is ATTENTION:
            assert_fused_is_plain(model, rtol=1e-3, atol=1e-5)
        else:
            refuse(model, ValueError, "the head's adapter 'default' must be plain LoRA, got")


@pytest.mark.parametrize("kind", ("PromptTuning", "PrefixTuning", "PromptEncoder"))
def test_adapters_that_run_the_model_with_inputs_of_their_own_are_refused(kind):
    config = getattr(peft, f"{kind}Config")(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model_of("Llama"), config)
    refuse(model, ValueError, "adapters must be layers inside the model")


@pytest.mark.parametrize("saved", (["lm_head"], ["lm_head", "embed_tokens"]))
def test_a_trained_copy_of_the_head_is_the_head(saved):
    model = with_lora(ATTENTION, modules_to_save=saved)
    got = scores_and_gradients(model, True)
    assert_the_same(got, scores_and_gradients(model, False))
    assert any("lm_head.modules_to_save" in name for name in got)


def test_adapters_that_a_head_cannot_be_fused_with_are_refused():
    refuse_at_call = {"DoRA": {"use_dora": True}, "dropout": {"lora_dropout": 0.1}}
    for reason, options in refuse_at_call.items():
        model, (inputs, token, _) = with_lora(**options).train(), batch_of()
        with pytest.raises(ValueError, match=reason), rlkern.fused_head(model):
            model(**inputs, token=token)
    model = with_lora(lora_dropout=0.1).eval()
    assert_fused_is_plain(model)


def test_two_active_adapters_of_a_head_are_refused():
    model, (inputs, token, _) = with_lora(), batch_of()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=BOTH))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="one active adapter"), rlkern.fused_head(model):
        model(**inputs, token=token)
