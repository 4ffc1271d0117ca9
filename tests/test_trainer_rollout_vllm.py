# SPDX-License-Identifier: Apache-2.0
"""vLLM as the sampler: against vLLM where it is installed, and against a stand-in everywhere.

The stand-in is not vLLM. It is what the engine is written to: prompts as token ids, one set of
parameters and one seed a row, processed log-probabilities, weights that stay what they were until
reload_weights is called.
"""

import importlib.machinery
import importlib.util
import json
import math
import sys
import types
from dataclasses import dataclass, field

import pytest
import torch
from rollout_helpers import score
from trainer_helpers import compiled, ragged_prompts, small, tiny_policy  # noqa: F401

from rlkern.runs.errors import UserError
from rlkern.trainer.rollout.engines import check_engine, make_engine
from rlkern.trainer.rollout.sampler import Sampling, random_numbers
from rlkern.trainer.rollout.text import Prompts, stop_tokens
from rlkern.trainer.rows import joined

pytestmark = pytest.mark.usefixtures("compiled")
INSTALLED = importlib.util.find_spec("vllm") is not None


@dataclass
class StandInParameters:
    """The parameters that the engine sets, by vLLM's names."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop_token_ids: list
    ignore_eos: bool
    logprobs: int
    detokenize: bool


@dataclass
class StandInAnswer:
    """Token ids, and of each the log-probabilities by id."""

    token_ids: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)


class StandInLLM:
    """Holds a copy of the weights and samples token by token without a cache."""

    def __init__(self, model, *, dtype, max_logprobs, logprobs_mode, enable_prefix_caching, **rest):
        from transformers import AutoModelForCausalLM

        assert logprobs_mode == "processed_logprobs" and not enable_prefix_caching
        self.most, self.model = max_logprobs, AutoModelForCausalLM.from_pretrained(model)
        torch.manual_seed(rest["seed"])

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        self.model.load_state_dict(dict(kwargs["weights_iterator"]))

    def generate(self, prompts, parameters, use_tqdm):
        rows = zip(prompts, parameters, strict=True)
        return [
            types.SimpleNamespace(outputs=[self._answer(prompt["prompt_token_ids"], asked)])
            for prompt, asked in rows
        ]

    @torch.no_grad()
    def _answer(self, ids, asked):
        assert asked.ignore_eos and asked.logprobs <= self.most
        answer, generator = StandInAnswer(), torch.Generator().manual_seed(asked.seed)
        while len(answer.token_ids) < asked.max_tokens:
            row = torch.tensor([ids + answer.token_ids])
            logits = self.model(row).logits[0, -1] / (asked.temperature or 1.0)
            logprob = self._processed(logits, asked)
            token = logprob.argmax()
            if asked.temperature:
                token = torch.multinomial(logprob.exp(), 1, generator=generator)[0]
            shown = {int(token), *logprob.topk(asked.logprobs).indices.tolist()}
            answer.logprobs.append(
                {i: types.SimpleNamespace(logprob=logprob[i].item()) for i in shown}
            )
            answer.token_ids.append(int(token))
            if int(token) in asked.stop_token_ids:
                break
        return answer

    @staticmethod
    def _processed(logits, asked):
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        scores = logits[None]
        if asked.top_k:
            scores = TopKLogitsWarper(asked.top_k)(None, scores)
        if asked.top_p < 1:
            scores = TopPLogitsWarper(asked.top_p)(None, scores)
        return scores[0].log_softmax(-1)


def stand_in():
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = StandInLLM, StandInParameters
    return module


@pytest.fixture(
    scope="module",
    params=[
        "stand-in",
        pytest.param("vllm", marks=pytest.mark.skipif(not INSTALLED, reason="vllm is not there")),
    ],
)
def engine(request, tmp_path_factory):
    config = small(tmp_path_factory.mktemp("runs"), rollout__engine="vllm", rollout__top_k=5)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            patch.setitem(sys.modules, "vllm", stand_in())
        yield make_engine(config, tiny_policy())


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", stand_in())


def sampled(engine, *, group_size=2, seed=0, prompts=None, uniform=None, **rule):
    sampling = Sampling(6, stop(engine.policy), **rule)
    prompts = prompts or ragged_prompts(engine.policy)
    if uniform is None:
        rows = len(prompts.token) * group_size
        uniform = random_numbers(torch.Generator().manual_seed(seed), rows, sampling)
    return engine.sample(prompts, sampling, group_size=group_size, uniform=uniform)


def stop(policy):
    return torch.cat([stop_tokens(policy, ""), torch.tensor(policy.tokenizer.encode("7"))])


def difference(engine, rollout, temperature=1.0):
    found = score(engine.policy, rollout, temperature=temperature)
    return (found - rollout.rollout_logprob)[rollout.mask].abs().max().item()


@pytest.mark.parametrize("rule", [{}, {"top_k": 5}, {"top_k": 5, "top_p": 0.7}])
def test_the_trainer_scores_what_it_reports(engine, rule):
    rollout = sampled(engine, temperature=0.8, **rule)
    assert difference(engine, rollout, 0.8) < 1e-4
    assert rollout.group_size == 2 and (rollout.keep is None) == (not rule)
    if rule:
        assert (rollout.keep == rollout.token[..., None]).any(-1)[rollout.mask].all()


def test_its_answers_end_with_the_token_that_ends_them(engine):
    rollout, ends = sampled(engine, group_size=4), set(stop(engine.policy).tolist())
    lengths = rollout.mask.sum(1).tolist()
    assert len(set(lengths)) > 1
    for row, length in zip(rollout.token.tolist(), lengths):
        assert not ends & set(row[: length - 1])
        assert row[length - 1] in ends or length == 6


def test_the_same_numbers_give_the_same_answers_in_one_piece_and_in_two(engine):
    prompts = ragged_prompts(engine.policy)
    uniform = random_numbers(torch.Generator().manual_seed(0), 8, Sampling(6, torch.tensor([1])))
    whole = sampled(engine, group_size=2, uniform=uniform)
    cut = ((0, 1), (1, 4))
    parts = [
        sampled(
            engine,
            group_size=2,
            prompts=Prompts(prompts.token[a:b], prompts.mask[a:b]),
            uniform=uniform[2 * a : 2 * b],
        )
        for a, b in cut
    ]
    found = joined(parts)
    assert torch.equal(whole.token, found.token) and torch.equal(whole.mask, found.mask)
    other = sampled(engine, group_size=2, seed=9)
    assert whole.token.shape != other.token.shape or not torch.equal(whole.token, other.token)


def test_greedy_answers_are_the_models_own(engine):
    from rlkern.trainer.rollout.sampler import ModelEngine

    sampling = Sampling(6, stop(engine.policy), temperature=0.0)
    prompts = ragged_prompts(engine.policy)
    own, found = (
        one.sample(prompts, sampling, group_size=1, uniform=None)
        for one in (ModelEngine(engine.policy), engine)
    )
    assert torch.equal(own.mask, found.mask)
    assert torch.equal(own.token[own.mask], found.token[found.mask])


def test_new_weights_are_taken_over_by_refresh_and_not_before(engine):
    with torch.no_grad():
        for parameter in engine.policy.model.parameters():
            parameter.mul_(1.05)
    assert difference(engine, sampled(engine)) > 1e-3
    engine.refresh()
    assert difference(engine, sampled(engine)) < 1e-4


def test_starting_it_does_not_touch_the_random_numbers_of_the_run(installed, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make_engine(small(tmp_path, rollout__engine="vllm"), tiny_policy())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_samples_with_it_and_says_how_far_it_is_from_the_trainer(installed, tmp_path):
    from rlkern.trainer.loop import train

    short = {"steps": 3, "batch__epochs": 2, "optimizer__lr": 1e-2}
    config = small(tmp_path, rollout__engine="vllm", **short, name="run")
    train(config)
    text = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text()
    key = "sampling/sampling_logp_difference/max"
    found = [line[key] for line in map(json.loads, text.splitlines()) if key in line]
    assert len(found) == 3 and max(found) < 1e-4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rollout__top_p": 0.9}, "that rollout.top_p 0.9 left only with a top_k: set rollout"),
        ({"lora__rank": 4}, "takes whole weights, got lora.rank 4"),
    ],
)
def test_what_it_cannot_do_is_one_sentence_before_a_model_is_loaded(
    installed, tmp_path, changes, sentence
):
    with pytest.raises(UserError, match=sentence):
        check_engine(small(tmp_path, rollout__engine="vllm", **changes))


def test_several_processes_are_one_sentence(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="rollout.engine vllm serves a run of one process, got 2"):
        check_engine(small(tmp_path, rollout__engine="vllm"))


def test_a_start_that_fails_is_one_sentence(installed, tmp_path, monkeypatch):
    def fails(self, model, **rest):
        raise RuntimeError("no memory left\nand more")

    monkeypatch.setattr(StandInLLM, "__init__", fails)
    with pytest.raises(UserError, match=r"did not start \(RuntimeError: no memory left\); use"):
        make_engine(small(tmp_path, rollout__engine="vllm"), tiny_policy())


def test_the_stand_in_reports_what_cannot_be_drawn_as_minus_infinity():
    asked = StandInParameters(1, 1.0, 3, 0.5, 0, [], True, 3, False)
    found = StandInLLM._processed(torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), asked)
    assert [math.isfinite(x) for x in found.tolist()] == [True, False, False, False]
