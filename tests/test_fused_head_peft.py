# SPDX-License-Identifier: Apache-2.0
"""fused_head over models that PEFT gave adapters: used and trained without being merged."""

import pytest
import torch
from fused_head_helpers import (
    assert_fused_is_plain,
    assert_the_same,
    batch_of,
    model_of,
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
