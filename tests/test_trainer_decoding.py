# SPDX-License-Identifier: Apache-2.0
"""What makes sampling fast changes nothing of what is sampled."""

import dataclasses

import pytest
import torch
from test_trainer_passes import policy_of
from trainer_helpers import compiled, ragged_prompts, tiny_policy  # noqa: F401
from transformers import DynamicCache

from rlkern.trainer.rollout import cache, drawing, packing, reading, sampler
from rlkern.trainer.rollout.cache import roomy
from rlkern.trainer.rollout.sampler import Sampling, random_numbers, sample

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.filterwarnings("ignore")]
# A quarter of the characters end an answer, so rows end one after the other.
RULE = Sampling(24, torch.tensor([1, 3, 4, 5]))


def rollout(policy, rule=RULE):
    numbers = random_numbers(torch.Generator().manual_seed(3), 16, rule)
    return sample(policy, ragged_prompts(policy), rule, group_size=4, uniform=numbers)


@pytest.mark.parametrize("width", (1500, 2048))
def test_a_token_is_that_of_float64_also_right_beside_a_boundary(width):
    generator = torch.Generator().manual_seed(0)
    logprob = (4 * torch.randn(400, width, generator=generator)).log_softmax(-1)
    exact = logprob.double().exp().cumsum(-1)
    share = exact / exact[:, -1:]
    at = torch.randint(width - 1, (400, 1), generator=generator)
    beside = torch.tensor([-1e-9, 0.0, 1e-9, 1e-4]).double().repeat(100)
    numbers = (share.gather(1, at)[:, 0] + beside).clamp(0, 1 - 2.0**-53)
    numbers[:3] = torch.tensor([0.0, 1 - 2.0**-53, 0.5]).double()
    expected = torch.searchsorted(exact, numbers[:, None] * exact[:, -1:], right=True)[:, 0]
    assert torch.equal(drawing.draw(logprob, numbers), expected)
    found, sure = drawing._by_blocks(logprob, numbers)
    assert torch.equal(found[sure], expected[sure])
    assert not torch.equal(found, expected) and sure.float().mean() > 0.1


def test_ids_that_cannot_be_drawn_are_not_among_many():
    logprob = torch.full((64, 3000), -torch.inf)
    logprob[:, 700:703] = torch.tensor([0.25, 0.5, 0.25]).log()
    numbers = (torch.arange(64).double() + 0.5) / 64
    expected = 700 + (numbers >= 0.25).long() + (numbers >= 0.75).long()
    assert torch.equal(drawing.draw(logprob, numbers), expected)


def test_a_cache_with_room_gives_the_bits_of_one_that_is_copied(monkeypatch):
    policy = tiny_policy()
    found = rollout(policy, Sampling(70, torch.tensor([1])))
    monkeypatch.setattr(reading, "roomy", lambda cache, most: cache)
    expected = rollout(policy, Sampling(70, torch.tensor([1])))
    for name in ("token", "mask", "rollout_logprob"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_layer_grows_in_place_until_its_room_is_full():
    cache, parts = roomy(DynamicCache(), most=90), torch.randn(90, 2, 3, 1, 4).unbind()
    found = [cache.update(part, -part, 0)[0] for part in parts]
    (layer,) = cache.layers
    assert len({x.data_ptr() for x in found}) <= 4 and layer.get_seq_length() == 90
    # No more than will come: a batch of short answers is mostly cache.
    assert found[-1].untyped_storage().nbytes() == 4 * 2 * 3 * 90 * 4
    assert torch.equal(layer.keys, torch.cat(parts, -2))
    assert torch.equal(layer.values, -torch.cat(parts, -2))
    layer.batch_select_indices(torch.tensor([1]))
    keys, _ = layer.update(parts[0][:1], parts[0][:1])
    expected = torch.cat([torch.cat(parts, -2)[1:], parts[0][:1]], -2)
    assert torch.equal(keys, expected)


@pytest.mark.parametrize("kind", ("llama", "mistral", "bart", "rwkv"))
def test_rows_that_have_ended_are_no_longer_read_and_the_others_go_on_alike(kind, monkeypatch):
    policy = tiny_policy() if kind == "llama" else policy_of(kind)
    seen, read = [], reading.Reading.read

    def look(self, token, known):
        seen.append(len(token))
        return read(self, token, known)

    monkeypatch.setattr(reading.Reading, "read", look)
    found = rollout(policy)
    whole = [n for n in seen if n == 16]
    assert len(whole) < len(seen) - 1 or kind == "rwkv", "rwkv keeps states of its own"
    monkeypatch.setattr(sampler, "_FULL", -1.0)
    expected = rollout(policy)
    assert torch.equal(found.token, expected.token) and torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.rollout_logprob, expected.rollout_logprob)


def test_kept_ids_of_rows_that_have_ended_are_none(monkeypatch):
    policy, rule = tiny_policy(), Sampling(24, RULE.stop, top_k=9, top_p=0.95)
    found = rollout(policy, rule)
    monkeypatch.setattr(sampler, "_FULL", -1.0)
    expected = rollout(policy, rule)
    assert torch.equal(found.keep, expected.keep) and (found.keep[~found.mask] == -1).all()


def in_bfloat16(policy):
    return dataclasses.replace(policy, mixed=True)


@pytest.mark.parametrize("tokens", (12, 24))
def test_weights_are_cast_once_for_all_tokens_of_a_rollout(tokens):
    policy = tiny_policy()
    mixed, cast = in_bfloat16(policy), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            known = {p.data_ptr() for p in policy.model.parameters() if p.ndim == 2}
            if "_to_copy" in str(function) and args[0].data_ptr() in known:
                cast.append(args[0].shape)
            return function(*args, **(kwargs or {}))

    with Watch():
        found = rollout(mixed, Sampling(tokens, torch.tensor([-1])))
    matrices = sum(p.ndim == 2 for p in policy.model.parameters())
    assert found.token.shape[1] == tokens and 0 < len(cast) <= matrices


def test_keys_are_rounded_once_and_to_what_attention_would_make_of_them(monkeypatch):
    policy, kept = in_bfloat16(tiny_policy()), []
    update = cache.RoomyLayer.update

    def look(self, *given):
        found = update(self, *given)
        kept.append((given[0].dtype, *(x.dtype for x in found)))
        return found

    monkeypatch.setattr(cache.RoomyLayer, "update", look)
    found = rollout(policy)
    assert set(kept) == {(torch.float32, torch.bfloat16, torch.bfloat16)}
    monkeypatch.setattr(reading, "roomy", lambda cache, most: cache)
    expected = rollout(policy)
    assert torch.equal(found.token, expected.token)
    assert torch.equal(found.rollout_logprob, expected.rollout_logprob)


def test_only_scores_keep_to_the_attention_of_training():
    policy, flash = in_bfloat16(tiny_policy()), torch.backends.cuda.flash_sdp_enabled
    with policy.precision():
        assert not flash()
    with policy.precision(sampling=True):
        assert flash()


needs_packing = pytest.mark.skipif(bool(packing.unavailable()), reason=str(packing.unavailable()))


@needs_packing
@pytest.mark.parametrize("kind", ("llama", "qwen2", "gpt_neox", "mixtral", "mamba"))
def test_packed_weights_sample_the_same_answers(kind, monkeypatch):
    policy = in_bfloat16(tiny_policy() if kind == "llama" else policy_of(kind))
    calls, product = [], packing._product
    monkeypatch.setattr(packing, "_product", lambda *x: calls.append(x) or product(*x))
    rule = Sampling(24, torch.tensor([1, 3]))
    linear = [x for x in policy.model.modules() if isinstance(x, torch.nn.Linear)]
    for bias in [x.bias for x in linear if x.bias is not None]:
        torch.nn.init.normal_(bias)
    found = rollout(policy, rule)
    assert len(calls) > len(linear) > 0 and not any("forward" in x.__dict__ for x in linear)
    monkeypatch.setattr(sampler, "pays", lambda *_: False)
    expected = rollout(policy, rule)
    assert torch.equal(found.token, expected.token)
    assert torch.equal(found.rollout_logprob, expected.rollout_logprob)


@needs_packing
def test_weights_are_packed_anew_for_each_rollout(monkeypatch):
    policy = in_bfloat16(tiny_policy())
    first = rollout(policy)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.25)
    found = rollout(policy)
    monkeypatch.setattr(sampler, "pays", lambda *_: False)
    assert torch.equal(found.rollout_logprob, rollout(policy).rollout_logprob)
    assert not torch.equal(found.rollout_logprob, first.rollout_logprob)


@needs_packing
def test_weights_are_packed_where_that_pays_and_their_layers_come_back():
    policy = tiny_policy()
    mixed = in_bfloat16(policy)
    assert packing.pays(mixed, 16) and not packing.pays(mixed, 15)
    assert not packing.pays(policy, 16), "products in float32 need no other order"
    next(iter(policy.parameters().values())).requires_grad_(False)
    assert packing.pays(mixed, 1), "autocast would round a frozen weight for each token"
    with pytest.raises(ZeroDivisionError), packing.packed(mixed):
        assert "forward" in policy.model.lm_head.__dict__
        1 / 0  # noqa: B018
    assert "forward" not in policy.model.lm_head.__dict__


@needs_packing
def test_a_packed_layer_keeps_to_float32_where_the_model_asks_for_it():
    policy, x = in_bfloat16(tiny_policy()), torch.randn(3, 128)
    head = policy.model.lm_head
    with torch.no_grad(), policy.precision(sampling=True):
        expected = head(x)
        with packing.packed(policy), torch.autocast("cpu", enabled=False):
            assert torch.equal(head(x), torch.nn.functional.linear(x, head.weight))
        with packing.packed(policy):
            assert torch.equal(head(x), expected) and expected.dtype == torch.bfloat16
