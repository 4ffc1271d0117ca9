# SPDX-License-Identifier: Apache-2.0
"""The whole of GRPO on one page: a language model learns to add, told only "right" or "wrong".

    python examples/grpo.py                  # a character model made here; a minute on a CPU
    python examples/grpo.py path/to/folder   # a causal language model in Hugging Face format

Held-out accuracy for seeds 0, 1, 2: 0.34, 0.33, 0.22 before GRPO and 0.72, 0.68, 0.49 after it.
Shapes: B answers, P tokens of the longest prompt, T tokens of the longest answer, H hidden size.
"""

import random
import sys

import tokenizers
import torch
import transformers

import rlkern

DEVICE = "cpu"  # "cuda" has not been tried yet
EXAMPLES = "25+07=032\n41+30=071\n"  # show a pretrained model what an answer looks like
HELD_OUT = 500  # questions that the model is never trained on
NEW_TOKENS = 4  # three digits, and the newline that ends an answer
GROUP = 8  # answers to each question, which are compared with each other
MINIBATCHES = 4  # optimizer steps on each batch of answers


def make_model():
    """Returns a Llama of 0.4M parameters with random weights, and a tokenizer of characters."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", *"\n0123456789+="])}
    characters = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    characters.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="\n"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=128, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), tokenizer


def read_model(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), tokenizer


def make_questions(examples):
    """Returns all (prompt, right answer), first those to train on, then those held out."""
    pairs = [(a, b) for a in range(100) for b in range(a + 1)]  # 34+12 would give 12+34 away
    random.shuffle(pairs)
    questions = [(f"{examples}{a:02d}+{b:02d}=", f"{a + b:03d}") for a, b in pairs]
    return questions[HELD_OUT:], questions[:HELD_OUT]


def reward(text, answer):
    """Returns 1 for the right answer, else 0: the model is told nothing more."""
    return float(text.split("\n")[0] == answer)


def encode(tokenizer, texts):
    """Returns token ids (B, P), padded on the left, and a mask (B, P), which is 0 for padding."""
    batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt").to(DEVICE)
    return batch.input_ids, batch.attention_mask


def positions(seen):
    return (seen.cumsum(-1) - 1).clamp(min=0)  # padding has no position of its own


@torch.no_grad()
def rollout(model, tokenizer, questions, greedy=False):
    """Returns ids (B, P + T), their mask (B, P + T), P, and the rewards (B,)."""
    ends = torch.tensor([tokenizer.eos_token_id, tokenizer("\n").input_ids[-1]], device=DEVICE)
    ids, seen = encode(tokenizer, [prompt for prompt, _ in questions])
    P, alive, cache = ids.shape[1], seen[:, -1] == 1, transformers.DynamicCache()
    for _ in range(NEW_TOKENS):
        new = ids[:, cache.get_seq_length() :]  # the whole prompts, then one token at a time
        place = positions(seen)[:, -new.shape[1] :]
        logits = model(new, seen, place, cache, logits_to_keep=1).logits[:, -1]  # (B, V)
        token = logits.argmax(-1) if greedy else logits.softmax(-1).multinomial(1)[:, 0]
        ids = torch.cat([ids, torch.where(alive, token, tokenizer.pad_token_id)[:, None]], 1)
        seen = torch.cat([seen, alive[:, None]], 1)  # an answer's last token too: it has to end
        alive = alive & ~torch.isin(token, ends)
    texts = tokenizer.batch_decode(ids[:, P:], skip_special_tokens=True)
    graded = [reward(text, answer) for text, (_, answer) in zip(texts, questions)]
    return ids, seen, P, torch.tensor(graded, device=DEVICE)


def answers(model, ids, seen, P):
    """Returns hidden states (B, T, H), tokens (B, T) and mask (B, T) of the answers."""
    hidden = model.get_decoder()(ids, seen, positions(seen), use_cache=False).last_hidden_state
    return hidden[:, P - 1 : -1], ids[:, P:], seen[:, P:].bool()  # a state predicts the next token


def update(model, optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def main(folder="", supervised=150, steps=100, questions=48, lr=3e-4, seed=0):
    """Trains a model; returns its accuracy on held-out questions before and after GRPO."""
    random.seed(seed)
    torch.manual_seed(seed)
    model, tokenizer = read_model(folder) if folder else make_model()
    head = model.to(DEVICE).get_output_embeddings()
    train, held_out = make_questions(EXAMPLES if folder else "")

    # An untrained model is never right, and rewards of 0 teach nothing: first show it answers.
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for _ in range(supervised):
        ids, seen = encode(tokenizer, [p + a + "\n" for p, a in random.sample(train, 64)])
        hidden, token, mask = answers(model, ids, seen, ids.shape[1] - NEW_TOKENS)
        scored = rlkern.linear_token_logprob(hidden, head.weight, token, mask=mask)
        update(model, optimizer, -scored.logprob.mean())

    before = rollout(model, tokenizer, held_out, greedy=True)[-1].mean().item()
    print(f"held-out accuracy before GRPO: {before:.3f}", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.0)
    group = torch.arange(questions, device=DEVICE).repeat_interleave(GROUP)  # (B,)
    for step in range(1, steps + 1):
        asked = [q for q in random.sample(train, questions) for _ in range(GROUP)]
        ids, seen, P, rewards = rollout(model, tokenizer, asked)
        advantage = rlkern.group_advantage(rewards, group)  # (B,); 0 where all of a group agree
        with torch.no_grad():  # of the sampling policy: the clip bounds how far the new one moves
            hidden, token, mask = answers(model, ids, seen, P)
            old = rlkern.linear_token_logprob(hidden, head.weight, token, bias=head.bias, mask=mask)
        for rows in torch.randperm(len(ids)).chunk(MINIBATCHES):
            hidden, token, mask = answers(model, ids[rows], seen[rows], P)
            # From hidden states to gradients: the logits (B, T, V) are never stored.
            out = rlkern.linear_policy_loss(
                hidden, head.weight, token, advantage[rows], mask, bias=head.bias,
                old_logprob=old.logprob[rows], algorithm="grpo",
            )  # fmt: skip
            update(model, optimizer, out.loss)
        if step % 20 == 0:
            print(f"step {step}: mean reward {rewards.mean():.3f}", flush=True)
    after = rollout(model, tokenizer, held_out, greedy=True)[-1].mean().item()
    print(f"held-out accuracy after GRPO: {after:.3f}")
    return before, after


if __name__ == "__main__":
    if len(sys.argv) > 1:  # a pretrained model takes longer per step and smaller steps
        main(sys.argv[1], supervised=0, steps=40, questions=8, lr=1e-5)
    else:
        main()
