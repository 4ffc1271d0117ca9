# SPDX-License-Identifier: Apache-2.0
"""`rlkern sample` and `rlkern chat`: how a model is asked, what it says, when it stops."""

import builtins

import pytest
import torch
from look_helpers import SYSTEM, refused, said
from trainer_helpers import fastest, small, tiny_policy

import rlkern
from rlkern.cli import chat
from rlkern.cli.speaker import Speaker, Speech, make_speaker
from rlkern.cli.target import check_writes, find_target
from rlkern.trainer import train
from rlkern.trainer.data.chat import Chat
from rlkern.trainer.rollout.sampler import Sampling, random_numbers, sample
from rlkern.trainer.rollout.stream import pieces_of_text, stream
from rlkern.trainer.rollout.text import encode, prompt_ids, stop_tokens, text_of, texts


def speaker(run, **speech):
    """Returns the model of a run, ready to speak."""
    return make_speaker(find_target(str(run), "best", check_writes), Speech(**speech))


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Returns the directory of a run on text, whose model has no template."""
    folder = tmp_path_factory.mktemp("sums")
    with rlkern.use_backend(fastest()):
        train(small(folder, name="sums", steps=1, eval__items=10))
    return folder / "runs" / "sums"


@pytest.mark.parametrize(
    "rule", [{"temperature": 0.0}, {}, {"top_k": 3, "temperature": 2.0}, {"top_p": 0.6}], ids=str
)
def test_a_streamed_answer_is_that_of_a_rollout_by_the_same_numbers(rule):
    policy = tiny_policy()
    sampling = Sampling(6, stop_tokens(policy, "7"), **rule)
    for number, prompt in enumerate(("1+2=", "123+456=")):
        uniform = None
        if sampling.temperature > 0:
            uniform = random_numbers(torch.Generator().manual_seed(number), 1, sampling)
        prompts = encode(policy, [prompt], max_new_tokens=6)
        rows = sample(policy, prompts, sampling, group_size=1, uniform=uniform)
        asked = prompt_ids(policy.tokenizer, prompt)
        drawn = stream(policy, asked, sampling, None if uniform is None else uniform[0])
        assert list(drawn) == rows.token[0][rows.mask[0]].tolist()


def test_text_comes_as_whole_characters_and_adds_up_to_the_answer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: index for index, letter in enumerate(sorted(alphabet))}
    tokenizer = Tokenizer(models.BPE({**vocabulary, "<eos>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    policy = tiny_policy()
    policy = type(policy)(policy.model, fast, policy.device)
    text = "héllo 你好 \N{GRINNING FACE}"
    said = [*fast.encode(text), fast.eos_token_id]
    pieces = list(pieces_of_text(policy, fast.encode("a: "), said))
    assert "".join(pieces) == text and "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "你" in pieces and pieces[0] == "h"
    # What is no character after all is shown in the end.
    broken = said[:2]
    assert "".join(pieces_of_text(policy, [], broken)) == text_of(policy, [], broken)


def test_a_run_on_messages_is_asked_in_its_template_with_its_system_message(chats):
    found = speaker(chats)
    tokenizer, asked = found.policy.tokenizer, found.prompt("1+2=", plain=False)
    assert tokenizer.decode(prompt_ids(tokenizer, asked)) == (
        f"<system>{SYSTEM}<eos><user>1+2=<eos><assistant>"
    )
    other = speaker(chats, system="A").prompt("1+2=", plain=False)
    assert tokenizer.decode(prompt_ids(tokenizer, other)).startswith("<system>A<eos><user>")
    without = speaker(chats, system="").prompt("1+2=", plain=False)
    assert tokenizer.decode(prompt_ids(tokenizer, without)) == "<user>1+2=<eos><assistant>"
    assert found.prompt("1+2=", plain=True) == "1+2="
    assert found.sampling.max_new_tokens == 3 and found.sampling.temperature == 1.0
    assert speaker(chats, temperature=0.5, top_k=2, max_new_tokens=9).sampling.top_k == 2


def test_a_template_of_one_column_is_put_around_the_prompt(chats):
    found = speaker(chats)
    data = found.settings.data.model_copy(update={"template": "Q: {question} A:", "system": None})
    found.settings = found.settings.model_copy(update={"data": data})
    assert found.prompt("1+2=", plain=False) == "Q: 1+2= A:"
    data = data.model_copy(update={"template": "{a}+{b}"})
    found.settings = found.settings.model_copy(update={"data": data})
    with pytest.raises(rlkern.trainer.UserError, match="give the whole text with --plain"):
        found.prompt("1+2=", plain=False)


def test_sample_prints_what_the_model_says(capsys, sums):
    greedy = said(capsys, "sample", sums, "12+34=", "--temperature", 0)
    assert greedy == said(capsys, "sample", sums, "12+34=", "--temperature", 0, "--seed", 5)
    policy = speaker(sums).policy
    prompts, rule = (
        encode(policy, ["12+34="], max_new_tokens=4),
        Sampling(4, stop_tokens(policy, "")),
    )
    rows = sample(policy, prompts, rule.greedy(), group_size=1, uniform=None)
    assert greedy == texts(policy, rows)[0] + "\n"
    several = said(capsys, "sample", sums, "12+34=", "--samples", 5, "--temperature", 3)
    assert several.splitlines()[::2] == [f"[{n}]" for n in range(1, 6)]
    assert len(set(several.splitlines()[1::2])) > 1
    again = said(capsys, "sample", sums, "12+34=", "--samples", 5, "--temperature", 3)
    other = said(capsys, "sample", sums, "12+34=", "--samples", 5, "--temperature", 3, "--seed", 1)
    assert several == again != other


def test_an_answer_that_is_cut_off_says_so_beside_the_output(capsys, sums):
    assert rlkern.cli.main(["sample", str(sums), "1+1=", "--max_new_tokens", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "(cut off after 1 tokens; --max_new_tokens takes more)\n"
    assert len(captured.out) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["12+34=", "--temperature", -1], "temperature must be a finite number, 0 or more, got"),
        (["12+34=", "--temperature", 1e-6], "temperature must be 0, or at least 1e-4, got 1e-06"),
        (["12+34=", "--top_p", 0], "top_p must be a number above 0, at most 1, got '0'"),
        (["12+34=", "--temperature", 0, "--top_k", 2], "temperature 0 does not sample"),
        (["12+34=", "--samples", 0], "samples must be at least 1, got 0"),
        (["12+34=", "--samples", 2, "--temperature", 0], "samples must be 1 at temperature 0"),
        (["12+34=", "--system", "Add."], "system needs a chat template, which sums, "),
        (["abc"], "the model has no token for some of the text 'abc'"),
        ([""], "a prompt must have at least one token"),
        (["1+1=", "--max_new_tokens", 600], "do not fit the model's context of 512"),
        (["1+1=", "--checkpoint", 9], "checkpoint must be best, newest or a step"),
        (["1+1=", "--max_new_token", 9], "there is no flag --max_new_token; did you mean --max_"),
        ([], "the following arguments are required: prompt"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(map(str, value)),
)
def test_a_mistake_is_one_sentence(capsys, sums, arguments, sentence):
    assert sentence in refused(capsys, "sample", sums, *arguments)


def test_what_cannot_speak_says_why(capsys, sums, chats, tmp_path):
    assert "tiny is made for the characters of a run" in refused(capsys, "sample", "tiny", "1")
    assert "there is no model" in refused(capsys, "chat", tmp_path / "none")
    assert "system is a message" in refused(
        capsys, "sample", chats, "1+1=", "--plain", "--system", "Add."
    )
    why = refused(capsys, "chat", sums)
    assert "has no chat template" in why and f"rlkern sample {sums}" in why


def talk(monkeypatch, capsys, run, lines, answers=None):
    """Returns (what is printed, the messages of each question) of a conversation of these lines."""
    typed, asked = iter(lines), []
    real = Speaker.answer

    def read(prompt):
        line = next(typed, None)
        if line is None:
            raise EOFError
        if isinstance(line, type):
            raise line
        return line

    def answer(self, prompt):
        assert isinstance(prompt, Chat)
        asked.append([(m["role"], m["content"]) for m in prompt.messages])
        return real(self, prompt) if answers is None else answers(self)

    monkeypatch.setattr(builtins, "input", read)
    monkeypatch.setattr(Speaker, "answer", answer)
    return said(capsys, "chat", run), asked


def test_a_chat_keeps_the_conversation_until_it_is_reset(monkeypatch, capsys, chats):
    lines = ["1+2=", "", "2+3=", "/what", "/reset", "4+4=", "/quit", "5+5="]
    out, asked = talk(monkeypatch, capsys, chats, lines)
    assert [len(messages) for messages in asked] == [2, 4, 2]
    first, second, third = asked
    assert first == [("system", SYSTEM), ("user", "1+2=")]
    assert second[:2] == first and second[2][0] == "assistant" and second[3] == ("user", "2+3=")
    assert f"model: {second[2][1]}" in out
    assert third == [("system", SYSTEM), ("user", "4+4=")]
    assert "there is no command /what\n/reset forgets" in out
    assert all(len(line) <= 80 for line in out.splitlines()[:2])


def test_ctrl_c_stops_an_answer_and_what_was_said_stays(monkeypatch, capsys, chats):
    def interrupted(self):
        yield "3"
        raise KeyboardInterrupt

    lines = ["1+2=", KeyboardInterrupt, "2+2="]
    out, asked = talk(monkeypatch, capsys, chats, lines, interrupted)
    assert "model: 3 (stopped)\n" in out and out.count(chat.QUIT) == 2
    assert asked[1][2] == ("assistant", "3")


def test_a_question_that_does_not_fit_leaves_the_conversation(monkeypatch, capsys, chats):
    lines = ["1+2=", "1+" * 300, "x", "2+2="]
    out, asked = talk(monkeypatch, capsys, chats, lines)
    assert "do not fit the model's context of 512" in out and "makes room" in out
    assert "no token for some of the text 'x'" in out
    assert len(asked[3]) == 4 and asked[3][1] == ("user", "1+2=")


def test_help_names_the_options(capsys):
    for command in ("sample", "chat"):
        out = said(capsys, command, "--help")
        names = "checkpoint system temperature top_k top_p max_new_tokens seed device dtype"
        assert all(f"--{name}" in out for name in names.split())
    assert "--samples" in said(capsys, "sample", "--help")
