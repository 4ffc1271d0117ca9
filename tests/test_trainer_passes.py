# SPDX-License-Identifier: Apache-2.0
"""How models that are more than plain attention are run, and what a run checks before it begins."""

import dataclasses
import inspect

import pytest
import torch
import transformers
from architectures.tiny import tiny_model, tokenizer
from trainer_helpers import begun, compiled, settings, small, tiny_policy  # noqa: F401
from transformers import LlamaForCausalLM

from rlkern.trainer import UserError
from rlkern.trainer.models import load
from rlkern.trainer.models.policy import Policy, hidden_states
from rlkern.trainer.models.ways import Way
from rlkern.trainer.rollout import check
from rlkern.trainer.rollout.reading import Reading
from rlkern.trainer.rollout.sampler import Sampling, random_numbers, sample
from rlkern.trainer.rollout.text import Prompts, encode

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.filterwarnings("ignore")]
PROMPTS = ["12=", "345+6=", "7+8="]


def policy_of(kind):
    return Policy(tiny_model(kind), tokenizer(), torch.device("cpu"))


def rollout_of(policy, prompts, numbers=None):
    rule = Sampling(5, torch.tensor([4]))
    given = encode(policy, prompts, max_new_tokens=5)
    if numbers is None:
        numbers = random_numbers(torch.Generator().manual_seed(0), 2 * len(prompts), rule)
    return sample(policy, given, rule, group_size=2, uniform=numbers), numbers


@pytest.mark.parametrize("kind", ("bart", "rwkv", "mamba", "qwen3_5_text"))
def test_prompts_of_several_lengths_are_sampled_as_each_alone(kind):
    policy = policy_of(kind)
    whole, numbers = rollout_of(policy, PROMPTS)
    assert whole.prompts == 3 and whole.group_size == 2
    for index, prompt in enumerate(PROMPTS):
        alone, _ = rollout_of(policy, [prompt], numbers[2 * index : 2 * index + 2])
        for g in range(2):
            real, own = whole.mask[2 * index + g], alone.mask[g]
            assert whole.token[2 * index + g][real].tolist() == alone.token[g][own].tolist()
            torch.testing.assert_close(
                whole.rollout_logprob[2 * index + g][real], alone.rollout_logprob[g][own],
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip


@pytest.mark.parametrize("kind", ("llama", "bart"))
def test_padding_on_either_side_changes_no_hidden_state(kind):
    policy = policy_of(kind)
    rollout, _ = rollout_of(policy, PROMPTS)
    assert policy.passes.way == Way(kind == "llama", True)
    found = hidden_states(policy, rollout, share_prompts=False)
    for way in (Way(True, True), Way(False, True)):
        if kind == "bart" and way.pads_left:
            continue
        policy.passes.choose(way)
        other = hidden_states(policy, rollout, share_prompts=False)
        torch.testing.assert_close(other[rollout.mask], found[rollout.mask], rtol=1e-4, atol=1e-5)


def test_a_model_without_a_cache_reads_whole_rows_again():
    policy = policy_of("llama")
    expected, numbers = rollout_of(policy, PROMPTS)
    policy.passes.choose(Way(False, False))
    found, _ = rollout_of(policy, PROMPTS, numbers)
    assert torch.equal(found.token * found.mask, expected.token * expected.mask)
    torch.testing.assert_close(found.rollout_logprob, expected.rollout_logprob)


def test_the_cache_goes_by_the_name_that_the_model_gives_it(monkeypatch):
    # transformers 5.24 calls it so, and takes the old name with a warning until 5.40.
    plain = LlamaForCausalLM.forward

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **options
    ):
        kept = inspect.signature(plain).parameters.keys() & {"cache", "past_key_values"}
        given = {"attention_mask": attention_mask, "position_ids": position_ids, kept.pop(): cache}
        return plain(self, input_ids, **given, **options)

    expected, numbers = rollout_of(policy_of("llama"), PROMPTS)
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    policy = policy_of("llama")
    assert policy.passes.cache_name == "cache" and policy.passes.shares
    found, _ = rollout_of(policy, PROMPTS, numbers)
    torch.testing.assert_close(found.rollout_logprob, expected.rollout_logprob)


def test_a_model_that_is_sampled_without_a_cache_is_named():
    said: list[str] = []
    check.check_model(policy_of("blt"), PROMPTS, settings(), said.append)
    check.check_model(tiny_policy(), PROMPTS, settings(), said.append)
    assert said == [
        "BltForCausalLM is sampled without a cache: each token takes a pass over its whole row"
    ]


def test_a_sampler_that_disagrees_stops_the_run_with_the_models_class(monkeypatch):
    read = Reading.read
    monkeypatch.setattr(Reading, "read", lambda *a: read(*a).mul(1.1))
    with pytest.raises(
        UserError, match="model LlamaForCausalLM cannot be trained exactly: the samp"
    ):
        check.check_model(tiny_policy(), PROMPTS, settings(), print)


def test_a_trainer_that_disagrees_stops_the_run(monkeypatch):
    scored = check.token_logprob
    monkeypatch.setattr(check, "token_logprob", lambda *a: scored(*a) - 0.01)
    with pytest.raises(UserError, match="the trainer and the model itself, .* differ by 0.01"):
        check.check_model(tiny_policy(), PROMPTS, settings(), print)


def test_a_run_checks_its_model_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_ROUNDING", -1.0)
    with pytest.raises(UserError, match="LlamaForCausalLM cannot be trained exactly"):
        begun(small(tmp_path, sft=None), tmp_path)


def test_prompts_of_one_length_are_checked_with_a_shorter_one():
    policy = tiny_policy()
    some = check._two_lengths(policy, ["1+2=", "3+4="])
    assert some.mask.sum(1).tolist() == [4, 2]


def test_a_step_adds_the_loss_for_the_router_of_a_mixture(tmp_path):
    policy = policy_of("mixtral")
    policy.save(tmp_path / "model")
    gates = {}
    for asked in (False, True):
        given = small(tmp_path, sft=None, model=str(tmp_path / "model"), batch__micro_batches=2)
        run = begun(given, tmp_path)
        model = run.parts.policy.model
        model.config.output_router_logits = asked
        model.router_aux_loss_coef = 0.5
        rows, _ = rollout_of(run.parts.policy, PROMPTS + ["1="])
        rows = dataclasses.replace(
            rows, advantage=torch.zeros(8), weight=rows.mask / rows.mask.sum()
        )
        run.updater.accumulate(rows)
        speaks = run.updater._own.speaks(rows)  # the router learns from silent groups, too
        assert speaks is None if asked else not speaks.any()
        weights = [x for n, x in model.named_parameters() if "gate.weight" in n]
        gates[asked] = [x.grad.clone() for x in weights]
        expected = 0.0
        for half in (slice(0, 4), slice(4, 8)) if asked else ():
            seen = torch.cat([rows.prompt_mask.repeat_interleave(2, 0), rows.present], 1)[half]
            token = torch.cat([rows.prompt.repeat_interleave(2, 0), rows.token], 1)[half]
            given = run.parts.policy.passes.inputs(token, seen)
            expected = expected + 0.5 * 0.5 * model(**given).aux_loss
    assert all(not x.any() for x in gates[False])
    for got, grad in zip(gates[True], torch.autograd.grad(expected, weights)):
        torch.testing.assert_close(got, grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ("longrope", "dynamic", "yarn"))
def test_rows_are_no_longer_than_rotary_embeddings_stay_the_same(kind):
    policy = tiny_policy()
    half = policy.model.config.hidden_size // policy.model.config.num_attention_heads // 2
    policy.model.config.rope_parameters = {
        "rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 64,
        "short_factor": [1.0] * half, "long_factor": [2.0] * half, "factor": 8.0,
    }  # fmt: skip
    assert policy.context == {"longrope": 64, "dynamic": 64, "yarn": 512}[kind]


def test_the_context_of_a_model_for_images_is_that_of_its_text():
    assert policy_of("gemma3").context == 64


NAMES = ("activation_checkpointing_enable", "gradient_checkpointing_enable")


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_recomputed_under_the_name_that_transformers_has(monkeypatch, name):
    policy, asked = tiny_policy(), []
    for one in NAMES:
        monkeypatch.delattr(transformers.PreTrainedModel, one, raising=False)
    enable = lambda model, kwargs: asked.append(kwargs)  # noqa: E731
    monkeypatch.setattr(transformers.LlamaForCausalLM, name, enable, raising=False)
    assert load.recomputing(policy).recompute
    assert [given["use_reentrant"] for given in asked] == [False]


def test_a_prompts_cache_is_shared_where_it_holds_keys_and_values_alone():
    shares = {kind: policy_of(kind).passes.shares for kind in ("llama", "mistral", "lfm2", "mamba")}
    assert shares == {"llama": True, "mistral": True, "lfm2": False, "mamba": False}


def test_prompts_that_are_given_unpadded_stay_one_batch():
    policy = policy_of("bart")
    token = torch.tensor([[3, 4], [5, 6]])
    rule = Sampling(2, torch.tensor([4]), temperature=0)
    found = sample(policy, Prompts(token, token > 0), rule, group_size=1, uniform=None)
    assert torch.equal(found.prompt, token)


def test_a_model_that_cannot_recompute_its_layers_is_refused(monkeypatch):
    policy = tiny_policy()

    def refusing(*_):
        raise ValueError("Toy does not support it")

    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        monkeypatch.setattr(policy.model, name, refusing, raising=False)
    with pytest.raises(UserError, match="memory.gradient_checkpointing: Toy does not support it"):
        load.recomputing(policy)
