# SPDX-License-Identifier: Apache-2.0
"""fused_head over models of transformers: the scores of their logits, gradients to all weights."""

import sys
import threading

import pytest
import torch
from fused_head_helpers import (
    CONFIGS,
    assert_fused_is_plain,
    assert_the_same,
    batch_of,
    model_of,
    refuse,
    scores_and_gradients,
    transformers,
)
from torch import nn

import rlkern


@pytest.mark.parametrize("tied", (False, True), ids=("own head", "tied"))
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_gradients_are_those_of_the_logits(name, tied):
    model = model_of(name, tied)
    head, table = (f().weight for f in (model.get_output_embeddings, model.get_input_embeddings))
    assert (head is table) == tied
    assert_fused_is_plain(model)


@pytest.mark.parametrize("name", ("Gemma2", "Cohere", "Granite"))
def test_the_scale_and_the_softcap_of_a_model_make_a_difference(name):
    model = model_of(name)
    bare = model_of(name, **dict.fromkeys(CONFIGS[name].keys() - {"head_dim"}, 1.0))
    bare.load_state_dict(model.state_dict())
    same, other = (scores_and_gradients(m, True)["logprob"] for m in (model, bare))
    assert (same - other).abs().max() > 0.01


def test_a_model_in_bfloat16_and_one_with_a_float32_head():
    model = model_of("Qwen2", dtype=torch.bfloat16)
    assert_fused_is_plain(model, rtol=0.05, atol=0.05)
    inputs, token, mask = batch_of()
    model.lm_head.float()
    with rlkern.fused_head(model.eval()), torch.no_grad():
        got = model(**inputs, token=token, mask=mask).logprob
        hidden = model.model(**inputs).last_hidden_state
    logits = hidden.float() @ model.lm_head.weight.t()
    expected = rlkern.token_logprob(logits, token, mask=mask).logprob
    torch.testing.assert_close(got, expected)


def test_an_answer_is_scored_by_the_states_before_its_tokens():
    model, (inputs, _, _) = model_of("Llama"), batch_of()
    ids, n = inputs["input_ids"], 3
    with torch.no_grad(), rlkern.fused_head(model):
        got = model(**inputs, token=ids[:, -n:])
        logits = model(**inputs).logits
    expected = rlkern.token_logprob(logits[:, -n - 1 : -1].contiguous(), ids[:, -n:])
    assert got.logprob.shape == (2, n)
    torch.testing.assert_close(got.logprob, expected.logprob)


def test_without_token_and_after_the_block_the_model_is_as_it_was():
    model, (inputs, _, _) = model_of("Llama"), batch_of()
    before = model(**inputs).logits
    with rlkern.fused_head(model):
        assert torch.equal(model(**inputs).logits, before)
    assert "forward" not in model.__dict__ and "forward" not in model.model.__dict__
    with pytest.raises(ZeroDivisionError), rlkern.fused_head(model):
        raise ZeroDivisionError
    assert "forward" not in model.__dict__ and torch.equal(model(**inputs).logits, before)


def test_a_forward_that_somebody_else_replaced_comes_back():
    model = model_of("Llama")
    model.forward = own = model.forward
    with rlkern.fused_head(model):
        assert model.forward is not own
    assert model.__dict__["forward"] is own


def test_the_logits_are_never_made():
    model, (inputs, token, _) = model_of("Llama"), batch_of()
    calls = []
    model.lm_head.register_forward_hook(lambda module, given, made: calls.append(made.shape[-1]))
    with rlkern.fused_head(model):
        calls.clear()  # of the look at the model's last lines
        model(**inputs, token=token).logprob.sum().backward()
    assert calls == [1] and model.lm_head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("reentrant", (False, True))
def test_gradient_checkpointing_changes_nothing(reentrant):
    model = model_of("Qwen2").train()  # as checkpointing asks
    expected = scores_and_gradients(model, False)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    assert_the_same(scores_and_gradients(model, True), expected)


def test_a_compiled_model_gives_the_same():
    torch._dynamo.reset()
    model, (inputs, token, mask) = model_of("Qwen2"), batch_of()
    expected = scores_and_gradients(model, False, 1.0)
    with rlkern.fused_head(model):
        run = torch.compile(model, backend="aot_eager", fullgraph=True)
        model.zero_grad()
        out = run(**inputs, token=token, mask=mask)
        (out.logprob.sum() + 0.3 * out.entropy.square().sum()).backward()
    torch.testing.assert_close(out.logprob.detach(), expected["logprob"])
    torch.testing.assert_close(model.lm_head.weight.grad, expected["lm_head.weight"])


def test_a_model_inside_torch_compile_is_found():
    torch._dynamo.reset()
    model = torch.compile(model_of("Llama"), backend="eager")
    inputs, token, mask = batch_of()
    with rlkern.fused_head(model), torch.no_grad():
        got = model(**inputs, token=token, mask=mask).logprob
    expected = scores_and_gradients(model._orig_mod, False, 1.0)["logprob"]
    torch.testing.assert_close(got, expected)


class Doubling(transformers.LlamaForCausalLM):
    """Makes of its logits what no configuration says."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + out.logits.roll(1, -1)
        return out


def test_logits_that_are_more_than_a_head_are_refused():
    refuse(Doubling(model_of("Llama").config), ValueError, "logits of Doubling must be those")


def test_a_model_without_a_head_is_refused():
    refuse(model_of("Llama").model, TypeError, "must be a causal language model")
    refuse(nn.Linear(2, 2), TypeError, "must be a causal language model.*got Linear")


def test_a_block_s_own_error_goes_before_a_replaced_forward():
    model = model_of("Qwen2")
    with pytest.raises(ZeroDivisionError), rlkern.fused_head(model):
        model.forward = lambda *args, **kwargs: "theirs"
        1 / 0  # noqa: B018


def test_threads_score_and_run_one_model_side_by_side():
    model = model_of("Llama").eval()
    ids = [torch.randint(3, 20, (1, 6), generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    wrong: list[int] = []

    def score(i: int, expected: torch.Tensor) -> None:
        for _ in range(60):
            found = model(input_ids=ids[i], token=ids[i]).logprob
            wrong.append(int(not torch.equal(found, expected)))

    def plain(expected: torch.Tensor) -> None:
        for _ in range(60):
            found = model(input_ids=ids[0]).logits
            wrong.append(int(found.shape != expected.shape or not torch.equal(found, expected)))

    before = sys.getswitchinterval()
    with torch.no_grad(), rlkern.fused_head(model):
        logits = model(input_ids=ids[0]).logits
        known = [model(input_ids=x, token=x).logprob for x in ids]
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=score, args=(i, known[i])) for i in (0, 1)]
            threads.append(threading.Thread(target=plain, args=(logits,)))
            for each in threads:
                each.start()
            for each in threads:
                each.join()
        finally:
            sys.setswitchinterval(before)
    assert len(wrong) == 180 and sum(wrong) == 0


def test_a_head_that_zero_3_has_taken_apart_is_refused():
    model = model_of("Llama")
    model.lm_head.weight.ds_id = 0
    refuse(model, ValueError, "DeepSpeed ZeRO-3 has split")


def test_a_forward_that_something_replaces_inside_the_block_is_said_and_kept():
    model = model_of("Qwen2")
    theirs = lambda *args, **kwargs: "theirs"  # noqa: E731
    with pytest.raises(RuntimeError, match="Qwen2ForCausalLM was replaced inside the with block"):
        with rlkern.fused_head(model):
            model.forward = theirs
    assert model.forward is theirs
