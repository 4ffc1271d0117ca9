# SPDX-License-Identifier: Apache-2.0
"""fused_head over models that are more than a dense decoder, and what its look at a head sees."""

import math

import pytest
import torch
from fused_head_helpers import batch_of, model_of, refuse, transformers

import rlkern
from rlkern.integrations import find_head as search
from rlkern.integrations.find_head import find_head

MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.3}


def mixture(**changed):
    """Returns a mixture of experts that has a loss for its router."""
    from fused_head_helpers import CONFIGS

    CONFIGS["Mixtral"] = {**MIXTURE, "output_router_logits": True, **changed}
    try:
        return model_of("Mixtral")
    finally:
        del CONFIGS["Mixtral"]


def gradients(model):
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def test_the_loss_for_the_router_is_what_transformers_adds():
    model, (inputs, token, _) = mixture(), batch_of()
    labels = inputs["input_ids"]
    both = model(**inputs, labels=labels, output_router_logits=True).loss
    bare = model(**inputs, labels=labels, output_router_logits=False).loss
    model.zero_grad()
    (both - bare).backward()
    expected = {name: x for name, x in gradients(model).items() if x.abs().max() > 1e-6}
    model.zero_grad()
    with rlkern.fused_head(model):
        out = model(**inputs, token=token)
    torch.testing.assert_close(out.aux_loss, both - bare)
    out.aux_loss.backward()
    got = gradients(model)
    assert any("gate" in name for name in expected)
    for name, grad in expected.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-4, atol=1e-6)


def test_a_mixture_that_asks_for_no_such_loss_has_none():
    model, (inputs, token, _) = mixture(output_router_logits=False), batch_of()
    with rlkern.fused_head(model), torch.no_grad():
        assert not hasattr(model(**inputs, token=token), "aux_loss")


class Biased(transformers.LlamaForCausalLM):
    """Adds a weight to its logits that its head does not have; zeros at the start."""

    def __init__(self, config):
        super().__init__(config)
        self.more = torch.nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + self.more
        return out


def test_a_weight_behind_the_hidden_states_that_is_not_the_heads_is_refused():
    refuse(Biased(model_of("Llama").config), ValueError, r"Biased: the gradient .* shape \(53,\)")


class Doubled(torch.nn.Linear):
    """A head that makes more of hidden states than its weight says."""

    def forward(self, hidden):
        return 2 * super().forward(hidden)


def test_a_head_that_is_more_than_its_weight_is_refused():
    model = model_of("Llama")
    model.lm_head = Doubled(model.config.hidden_size, model.config.vocab_size, bias=False)
    refuse(model, ValueError, "log-probs and entropy must be those of its head, got others")


class Twice(transformers.LlamaForCausalLM):
    """Wants an input that nobody gives."""

    def forward(self, *args, **kwargs):
        raise KeyError("images")


def test_a_model_that_cannot_run_on_tokens_alone_is_refused():
    refuse(Twice(model_of("Llama").config), TypeError, "Twice must score .* KeyError: 'images'")


def test_a_head_is_looked_at_once_for_each_state_of_it(monkeypatch):
    looks, look = [], search._look
    monkeypatch.setattr(search, "_look", lambda *a: looks.append(a) or look(*a))
    model = model_of("Llama")
    for _ in range(3):
        find_head(model)
    assert len(looks) == 1
    model.lm_head.weight.requires_grad_(False)
    find_head(model), find_head(model)
    assert len(looks) == 2


def test_a_look_leaves_the_modes_of_a_model_and_its_gradients_alone():
    model = model_of("Llama").train()
    model.model.layers[0].eval()
    with torch.inference_mode():
        find_head(model)
    assert model.training and not model.model.layers[0].training
    assert all(x.grad is None for x in model.parameters()) and torch.is_grad_enabled()


def test_the_text_of_a_model_for_images_is_scored():
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 1, "image_size": 8, "patch_size": 4,
              "model_type": "siglip_vision_model"}  # fmt: skip
    text = {**model_of("Gemma2").config.to_dict(), "model_type": "gemma3_text"}
    for name in ("layer_types", "architectures", "rope_parameters"):
        text.pop(name, None)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    inputs, token, mask = batch_of()
    with torch.no_grad():
        logits = model(**inputs).logits
        with rlkern.fused_head(model):
            got = model(**inputs, token=token, mask=mask).logprob
    torch.testing.assert_close(got, rlkern.token_logprob(logits, token, mask=mask).logprob)


@pytest.mark.parametrize("broken", ("in the head", "behind it"))
def test_logits_that_are_not_finite_are_refused_wherever_they_come_about(broken, monkeypatch):
    model = model_of("Llama")
    plain, own = type(model).forward, model.lm_head.forward

    def spoiled(self, *arguments, **more):
        found = plain(self, *arguments, **more)
        found.logits = found.logits / 0 if broken == "behind it" else found.logits.nan_to_num()
        return found

    monkeypatch.setattr(type(model), "forward", spoiled)
    if broken == "in the head":
        monkeypatch.setattr(model.lm_head, "forward", lambda x: own(x) + math.nan)
    refuse(model, ValueError, "logits must be finite for finite hidden states, got NaN or inf")


def test_weights_that_are_not_finite_are_named():
    model = model_of("Llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    refuse(model, ValueError, "logits must be finite .* the weight lm_head.weight holds some")
