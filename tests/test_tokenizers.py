# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of every kind: the ids of a prompt and its answer are those of one text, what is
sampled keeps its ids, and what a reward reads is the text of all of them.
"""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlkern.runs.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.reward.functions import Rewards, score_completions
from rlkern.trainer.reward.model import RewardModel, load_reward_model, make_scorer, scores
from rlkern.trainer.rollout.sampler import ModelEngine, Sampling, sample
from rlkern.trainer.rollout.text import (
    UNKNOWN,
    encode,
    given_rows,
    stop_tokens,
    texts,
    token_ids,
)
from rlkern.trainer.rollout.turns import converse, without_replies
from rlkern.trainer.tasks.task import Item, Task

CORPUS = [
    "one plus two is three",
    "what is 12 + 34? it is 46",
    "<tool> is a word",
    "12+34=46 7 8 9",
]
PROMPTS, ANSWERS = ["what is 12 + 34?", "12+34="], [" it is 46", "46", "is 7", " 8 9"]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def byte_level():
    """Returns byte-level BPE, as GPT-2 and SmolLM2 have it."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    ))  # fmt: skip
    return found


def metaspace():
    """Returns BPE whose words begin with a blank that it puts before every text, as Llama 2's."""
    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    found.decoder = decoders.Metaspace(prepend_scheme="always")
    found.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=90, special_tokens=SPECIAL, show_progress=False
    ))  # fmt: skip
    return found


def word_piece():
    """Returns WordPiece, as BERT has it: it does not read blanks."""
    found = Tokenizer(models.WordPiece(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece(cleanup=False)
    found.train_from_iterator(CORPUS, trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=SPECIAL, show_progress=False
    ))  # fmt: skip
    return found


class Kind(NamedTuple):
    """How a tokenizer is made: its model, what it puts around a text, and its padding token."""

    make: object
    template: str
    pad: str


BODIES = {"byte-level": byte_level, "metaspace": metaspace, "wordpiece": word_piece}
TEMPLATES = ("$A", "<s> $A", "$A </s>", "<s> $A </s>")
KINDS = {
    f"{name} {template} pad {pad}": Kind(make, template, pad)
    for name, make in BODIES.items()
    for template in TEMPLATES
    for pad in ("<pad>", "</s>")
}


def policy_of(kind, *, more=(), rows=0, **asked):
    """Returns a random model with a tokenizer, `more` tokens added to it, and so many more rows of
    embeddings."""
    inner = kind.make()
    ids = [(token, inner.token_to_id(token)) for token in SPECIAL]
    inner.post_processor = processors.TemplateProcessing(single=kind.template, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token=kind.pad,
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": list(more)})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + rows, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=None, eos_token_id=tokenizer.eos_token_id, **asked,
    )  # fmt: skip
    return Policy(LlamaForCausalLM(config).eval(), tokenizer, torch.device("cpu"))


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def policy(request):
    return policy_of(request.param)


PLAIN = Kind(byte_level, "$A", "<pad>")


def one_text(policy, text):
    """Returns the ids of a text that goes on."""
    ids = policy.tokenizer.encode(text)
    return ids[:-1] if ids[-1] == policy.tokenizer.eos_token_id else ids


def real(token, mask):
    return [row[kept].tolist() for row, kept in zip(token, mask)]


def with_tokens(rows, ids):
    """Returns rows of one prompt whose answer is made of these ids."""
    token = torch.tensor([ids])
    there = torch.ones_like(token).bool()
    return dataclasses.replace(
        rows.piece(0, 1), token=token, mask=there, present=there, rollout_logprob=token.float()
    )


def test_a_prompt_is_a_text_that_goes_on(policy):
    found = encode(policy, PROMPTS, max_new_tokens=4)
    assert real(found.token, found.mask) == [one_text(policy, text) for text in PROMPTS]


def test_a_prompt_and_a_given_answer_are_one_text(policy):
    rows, eos = given_rows(policy, PROMPTS, ANSWERS, stop=""), policy.tokenizer.eos_token_id
    ids = token_ids(rows)
    for place, answer in enumerate(ANSWERS):
        whole = one_text(policy, PROMPTS[place // 2] + answer)
        assert ids["prompt_ids"][place] + ids["completion_ids"][place] == [*whole, eos]
    # Where no token lies across the seam, the prompt is the one that a model is asked with.
    asked = [one_text(policy, text) for text in PROMPTS]
    assert all(full[: len(own)] == own for full, own in zip(asked, ids["prompt_ids"][::2]))


@pytest.mark.parametrize("make", (byte_level, metaspace))
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_token_across_the_seam_belongs_to_the_answer(make, template):
    policy = policy_of(Kind(make, template, "<pad>"))
    whole = one_text(policy, "is 12+34=46 plus")
    (across,) = {i for i in whole if policy.tokenizer.decode([i]).strip() == "plus"}
    prompts, answers = ["is 12+34=46 pl"], ["us", "us is"]
    ids = token_ids(given_rows(policy, prompts, answers, stop=""))
    before = whole[: whole.index(across)]
    assert ids["prompt_ids"] == [before, before]
    assert [row[0] for row in ids["completion_ids"]] == [across, across]
    assert len(one_text(policy, prompts[0])) > len(before)


def test_what_is_read_of_a_given_answer_is_what_was_given(policy):
    said = texts(policy, given_rows(policy, PROMPTS, ANSWERS, stop=""))
    if policy.tokenizer.encode("1 + 1") == policy.tokenizer.encode("1+1"):
        # WordPiece reads no blanks, and its decoder puts one before every word.
        assert [text.replace(" ", "") for text in said] == [a.replace(" ", "") for a in ANSWERS]
    else:
        ids = token_ids(given_rows(policy, PROMPTS, ANSWERS, stop=""))
        heads = [policy.tokenizer.decode(x, skip_special_tokens=True) for x in ids["prompt_ids"]]
        whole = [PROMPTS[i // 2] + answer for i, answer in enumerate(ANSWERS)]
        assert [head + text for head, text in zip(heads, said)] == whole


def test_an_answer_that_ends_by_itself_gets_no_second_end(policy):
    ended = [text + "</s>" for text in ANSWERS]
    found = given_rows(policy, PROMPTS, ended, stop="")
    assert torch.equal(found.token, given_rows(policy, PROMPTS, ANSWERS, stop="").token)


def test_a_rendered_template_has_its_beginning_once(policy):
    rendered, plain = (encode(policy, [t + PROMPTS[0]], max_new_tokens=1) for t in ("<s>", ""))
    ids = real(rendered.token, rendered.mask)[0]
    assert ids.count(policy.tokenizer.bos_token_id) == 1
    if real(plain.token, plain.mask)[0][0] == policy.tokenizer.bos_token_id:
        assert ids[-3:] == real(plain.token, plain.mask)[0][-3:]


def test_sampled_tokens_reach_a_reward_as_they_are(policy):
    stop = stop_tokens(policy, "")
    prompts = encode(policy, PROMPTS, max_new_tokens=6)
    uniform = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = sample(policy, prompts, Sampling(6, stop), group_size=2, uniform=uniform)
    seen = {}

    def reads_ids(prompts, completions, prompt_ids, completion_ids):
        seen.update(prompt=prompt_ids, completion=completion_ids, text=completions)
        return [0.0] * len(completions)

    items = [Item(PROMPTS[i // 2], "") for i in range(4)]
    score_completions(Rewards([reads_ids], [1.0]), items, texts(policy, rows), token_ids(rows))
    assert seen["completion"] == real(rows.token, rows.mask)
    assert seen["prompt"] == [one_text(policy, PROMPTS[i // 2]) for i in range(4)]


@pytest.mark.parametrize("message", (" it is 7", "= 7"))
def test_messages_of_an_environment_go_on_the_text(policy, message):
    def reply(item, text):
        return message

    def behind(text):
        return one_text(policy, text + message)[len(one_text(policy, text)) :]

    task = Task("talk", None, [], None, "?", 3, "", reply=reply, max_turns=2)
    items, stop = [Item(text, "") for text in PROMPTS], stop_tokens(policy, "")
    rows = converse(ModelEngine(policy), task, items, Sampling(3, stop, 0.0, max_turns=2),
                    group_size=1, uniform=None)  # fmt: skip
    assert real(rows.token, rows.present & ~rows.mask) == [behind("12")] * 2
    # And of given conversations the same tokens do not count.
    given = given_rows(policy, ["12"], [f"?{message} 8"], stop="?")
    kept = without_replies(policy, given, [Item("12", "")], task)
    assert real(given.token, given.mask & ~kept.mask) == [behind("12?")]


def test_special_tokens_and_unknown_ids_are_read_by_the_reward():
    policy = policy_of(PLAIN, more=["<think>"], rows=8)
    rows = given_rows(policy, PROMPTS[1:], ["46"], stop="")
    four, six = (policy.tokenizer.encode(digit)[0] for digit in "46")
    think = policy.tokenizer.convert_tokens_to_ids("<think>")
    pad, beyond = policy.tokenizer.pad_token_id, len(policy.tokenizer) + 3
    for between, text in ((think, "<think>"), (pad, "<pad>"), (beyond, UNKNOWN)):
        assert texts(policy, with_tokens(rows, [four, between, six])) == [f"4{text}6"]
    eos = policy.tokenizer.eos_token_id
    assert texts(policy, with_tokens(rows, [four, six, eos])) == ["46"]
    # The id that rows are padded with is a token as others are.
    assert token_ids(with_tokens(rows, [four, 0, six]))["completion_ids"] == [[four, 0, six]]


def test_a_reward_model_scores_what_a_model_wrote_and_texts_of_people_are_checked():
    policy = policy_of(Kind(word_piece, "$A", "<pad>"))
    reward = RewardModel(make_scorer(policy))
    assert reward(["12+34="], ["<unk>6"]) == [0.0]
    with pytest.raises(UserError, match="the model has no token for some of the text"):
        given_rows(policy, ["12+34="], ["<unk>6"], stop="")


def test_an_added_token_without_embeddings_is_one_sentence():
    policy = policy_of(PLAIN)
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    with pytest.raises(UserError, match="token '<think>' has the id .* resize"):
        encode(policy, ["1<think>"], max_new_tokens=1)


def test_a_padding_token_needs_no_embeddings():
    policy = policy_of(PLAIN)
    policy.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert policy.tokenizer.pad_token_id >= policy.model.config.vocab_size
    prompts = encode(policy, PROMPTS, max_new_tokens=4)
    eos = torch.tensor([policy.tokenizer.eos_token_id])
    uniform = torch.rand(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = sample(policy, prompts, Sampling(4, eos), group_size=4, uniform=uniform)
    assert rows.token.max() < policy.model.config.vocab_size
    given = given_rows(policy, PROMPTS, ANSWERS, stop="")
    assert scores(make_scorer(policy), given).tolist() == [0.0] * 4


@pytest.mark.parametrize("pad", ("<pad>", "</s>"))
def test_a_reward_model_reads_the_end_of_text_whatever_pads(pad, tmp_path):
    policy = policy_of(Kind(byte_level, "<s> $A", pad), num_labels=1)
    model = LlamaForSequenceClassification(policy.model.config).eval()
    policy = dataclasses.replace(policy, model=model)
    model.config.pad_token_id = policy.tokenizer.pad_token_id
    found = scores(policy, given_rows(policy, PROMPTS, ANSWERS, stop=""))
    for place, answer in enumerate(ANSWERS):
        ids = [*one_text(policy, PROMPTS[place // 2] + answer), policy.tokenizer.eos_token_id]
        every = model.score(model.model(input_ids=torch.tensor([ids])).last_hidden_state)
        torch.testing.assert_close(found[place], every[0, -1, 0], rtol=1e-5, atol=1e-5)
    policy.save(tmp_path)
    reward = load_reward_model(tmp_path, device=torch.device("cpu"), dtype="float32")
    prompts = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    torch.testing.assert_close(torch.tensor(reward(prompts, ANSWERS)), found)
