# SPDX-License-Identifier: Apache-2.0
"""Messages become the tokens of one rendered template, of which only the assistant's count."""

import io
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from rich.console import Console

from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import Chat, shown_answer
from rlkern.trainer.data.render import Tokens
from rlkern.trainer.models.load import character_tokenizer, chat_tokenizer
from rlkern.trainer.rollout.text import given_tokens, prompt_ids
from rlkern.trainer.show.rendered import rendered as print_rendered

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM, USER, AGAIN = (
    {"role": role, "content": text}
    for role, text in (("system", "Be brief."), ("user", "1+1?"), ("user", "Sure?"))
)
SAID, SURE, MERGED = ({"role": "assistant", "content": text} for text in ("2.", "Yes.", "\n\nYes."))


@pytest.fixture(scope="module")
def bpe():
    """Returns a byte-pair tokenizer that begins texts with <s>, and merges two newlines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator(["user assistant system\n\n\n\nYes. Be brief. Sure?"] * 8, trainer)
    first = ("<s>", plain.token_to_id("<s>"))
    plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[first])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>"
    )


def with_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


def counted(tokenizer, found):
    """Returns the text of all that follows the prompt, what counts in brackets."""
    text, inside = "", False
    for token, counts in zip(found.answer, found.counts, strict=True):
        text += "[" if counts and not inside else "]" if inside and not counts else ""
        text += tokenizer.decode([token])
        inside = counts
    return text + ("]" if inside else "")


def rendered(tokenizer, prompt, answer):
    policy = SimpleNamespace(tokenizer=tokenizer, model=None)
    (found,) = given_tokens(policy, prompt, [answer], stop="")
    return found


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by prefixes", "by marks"])
def test_only_the_assistants_tokens_count_up_to_the_end_of_its_message(bpe, template):
    tokenizer = with_template(bpe, template)
    prompt = Chat((SYSTEM, USER))
    found = rendered(tokenizer, prompt, (SAID, AGAIN, SURE))
    assert counted(tokenizer, found) == (
        "[2.<|im_end|>]\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n[Yes.<|im_end|>]"
    )
    assert found.prompt == prompt_ids(tokenizer, prompt)
    assert tokenizer.decode(found.prompt).endswith("1+1?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by prefixes", "by marks"])
def test_earlier_messages_of_the_assistant_in_a_prompt_do_not_count(bpe, template):
    tokenizer = with_template(bpe, template)
    found = rendered(tokenizer, Chat((USER, SAID, AGAIN)), "No.")
    assert counted(tokenizer, found) == "[No.<|im_end|>]"
    assert "2." in tokenizer.decode(found.prompt)


def test_the_ids_are_those_of_the_template_rendered_as_a_whole(bpe):
    tokenizer = with_template(bpe, CHATML)
    found = rendered(tokenizer, Chat((SYSTEM, USER)), (SAID,))
    whole = tokenizer.apply_chat_template([SYSTEM, USER, SAID], return_dict=False)
    assert found.prompt + found.answer == whole[: len(found.prompt + found.answer)]


def test_an_answer_whose_first_token_would_merge_with_the_prompt_keeps_the_prompt_of_sampling(bpe):
    tokenizer = with_template(bpe, CHATML)
    prompt = Chat((USER,))
    whole = tokenizer.apply_chat_template([USER, MERGED], return_dict=False)
    asked = prompt_ids(tokenizer, prompt)
    assert whole[: len(asked)] != asked  # the newlines are one token
    found = rendered(tokenizer, prompt, (MERGED,))
    assert found.prompt == asked
    assert counted(tokenizer, found) == "[\n\nYes.<|im_end|>]"


def test_a_text_begins_once_whoever_begins_it(bpe):
    tokenizer = with_template(bpe, "{{ bos_token }}" + CHATML)
    first = tokenizer.bos_token_id
    for prompt in (Chat((USER,)), "1+1?", "<s>1+1?"):
        assert prompt_ids(tokenizer, prompt).count(first) == 1
        assert rendered(tokenizer, prompt, "2.").prompt.count(first) == 1
    assert first not in prompt_ids(with_template(bpe, CHATML), Chat((USER,)))


def test_tools_reach_the_template(bpe):
    tools = "{% for t in tools or [] %}{{ t['function']['name'] }}{% endfor %}"
    tokenizer = with_template(bpe, tools + CHATML)
    tool = {"type": "function", "function": {"name": "adder"}}
    assert "adder" in tokenizer.decode(prompt_ids(tokenizer, Chat((USER,), (tool,))))


def test_a_text_has_the_template_where_there_is_one_and_else_stays_text(bpe):
    prompt = Chat((USER,), text="1+1?")
    tokenizer = with_template(bpe, CHATML)
    assert "<|im_start|>user" in tokenizer.decode(prompt_ids(tokenizer, prompt))
    plain = character_tokenizer("1+?2.")
    assert prompt_ids(plain, prompt) == plain.encode("1+1?")
    found = rendered(plain, prompt, "2.")
    assert found.answer == [*plain.encode("2."), plain.eos_token_id]


def test_plain_text_counts_but_for_its_first_token(bpe):
    found = rendered(bpe, None, "Yes.")
    assert found.prompt == [bpe.bos_token_id]
    assert counted(bpe, found) == "[Yes.<|im_end|>]"


def test_a_template_that_ends_no_message_gets_the_end_of_text(bpe):
    tokenizer = with_template(bpe, "{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    assert counted(tokenizer, rendered(tokenizer, Chat((USER,)), "2.")) == "[2.|<|im_end|>]"


def test_the_tiny_models_tokenizer_has_a_token_for_each_role():
    tokenizer = chat_tokenizer("12+?.")
    found = rendered(tokenizer, Chat((USER,)), "2.")
    assert tokenizer.decode(found.prompt) == "<user>1+1?<eos><assistant>"
    assert counted(tokenizer, found) == "[2.<eos>]"


@pytest.mark.parametrize(
    "template, words",
    [
        (None, "need a chat template, which the model's tokenizer has not: use an instruct model"),
        ("{{ raise_exception('no system') }}", "the chat template of the model fails .*no system"),
        ("{{ messages | length }}" + CHATML, "writes message 2 after .* differently when"),
        (MARKED.replace("== 'assistant'", "== 'user'"), "hold nothing of the answer to '1.1"),
    ],
)
def test_a_template_that_does_not_do_is_refused_in_a_sentence(bpe, template, words):
    tokenizer = with_template(bpe, template)
    with pytest.raises(UserError, match=words) as caught:
        rendered(tokenizer, Chat((USER,)), (SAID,))
    assert "\n" not in str(caught.value)


def test_an_example_is_printed_on_three_lines_in_a_terminal_of_any_width():
    tokenizer, out = character_tokenizer("0123456789+="), io.StringIO()
    ids = tokenizer.encode("1+2=" * 20)
    print_rendered(Console(file=out, width=20), tokenizer, "a long title", Tokens(ids, [], []))
    title, text, printed = out.getvalue().splitlines()
    assert (title, text) == ("a long title: 80 tokens of prompt", "1+2=" * 20)
    assert printed.split() == ["ids:", *map(str, ids)]


def test_of_an_answer_in_several_messages_a_person_sees_the_first():
    assert shown_answer((SAID, AGAIN, SURE)) == shown_answer("2.") == "2."
    assert shown_answer(({"role": "assistant", "tool_calls": []}, SAID)) == ""
