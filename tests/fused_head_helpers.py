# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of transformers, and their scores with their logits and without."""

import pytest
import torch

import rlkern

transformers = pytest.importorskip("transformers")

V, H, T = 53, 16, 7
TINY = {"vocab_size": V, "hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
CONFIGS = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 0.7},
    "GPT2": {},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 3.0},
}


def model_of(name: str, tied: bool = False, dtype=torch.float32, **changed):
    """Returns a random model of two layers whose logits are of a size that its softcap bends."""
    torch.manual_seed(0)
    options = {**TINY, **CONFIGS[name], "tie_word_embeddings": tied, **changed}
    config = getattr(transformers, f"{name}Config")(**options)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.1 * torch.randn(x.shape))
    return model.eval()


def batch_of(B=2):
    random = torch.Generator().manual_seed(1)
    ids, token = torch.randint(3, V, (2, B, T), generator=random)
    seen = torch.arange(T) >= torch.tensor([0, 2] * (B // 2))[:, None]  # padded on the left
    return {"input_ids": ids, "attention_mask": seen.long()}, token, seen


def scores_and_gradients(model, fused: bool, temperature=0.8):
    """Returns logprob and entropy of a batch and the gradient of every weight that has one."""
    inputs, token, mask = batch_of()
    model.zero_grad()
    if fused:
        with rlkern.fused_head(model):
            out = model(**inputs, token=token, mask=mask, temperature=temperature)
    else:
        logits = model(**inputs).logits
        out = rlkern.token_logprob(logits, token, mask=mask, temperature=temperature)
    (out.logprob.sum() + 0.3 * out.entropy.square().sum()).backward()
    grads = {n: x.grad for n, x in model.named_parameters() if x.grad is not None}
    return {"logprob": out.logprob.detach(), "entropy": out.entropy.detach(), **grads}


def assert_the_same(got, expected, **tolerance):
    assert got.keys() == expected.keys() and len(got) > 2
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], **tolerance)


def assert_fused_is_plain(model, **tolerance):
    assert_the_same(
        scores_and_gradients(model, True), scores_and_gradients(model, False), **tolerance
    )


def refuse(model, error, match):
    with pytest.raises(error, match=match), rlkern.fused_head(model):
        raise AssertionError("the block was entered")
