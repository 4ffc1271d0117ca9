# SPDX-License-Identifier: Apache-2.0
"""A policy gradient in the Trainer of transformers: its loss does not depend on how a batch is
split.

python examples/hf_trainer.py                          one process
torchrun --nproc_per_node 2 examples/hf_trainer.py     two, with DDP

The rows are answers that were sampled and rewarded before: token ids, labels (the same, −100 where
a token does not count), an advantage, and the log-probabilities that the sampler had. The logits
are never stored: inside `rlkern.fused_head` the model scores tokens. The toy rewards even tokens; a
real run puts its own rows there.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import rlkern


class PolicyTrainer(Trainer):
    """The Trainer with rlkern's loss from hidden states."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the loss of a micro-batch as its part of the whole step: every counted token of
        all micro-batches and processes has the same weight."""
        token, mask = inputs["labels"][:, 1:], inputs["labels"][:, 1:] != -100
        # token[b, t] is scored by the hidden state before it; the last one scores nothing.
        token = torch.nn.functional.pad(token, (0, 1))
        mask = torch.nn.functional.pad(mask, (0, 1))
        with rlkern.fused_head(self.accelerator.unwrap_model(model)):
            scored = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                token=token,
                mask=mask,
            )
        # The count of all micro-batches and processes; the Trainer then averages over processes.
        count = num_items_in_batch if num_items_in_batch is not None else mask.sum()
        out = rlkern.token_objective(
            scored.logprob,
            inputs["advantage"],
            mask,
            old_logprob=torch.nn.functional.pad(inputs["old_logprob"][:, 1:], (0, 1)),
            weight=mask.float() / count * self.accelerator.num_processes,
            algorithm="grpo",
            kl_coef=0.0,
        )
        return (out.loss, {"metrics": out.metrics}) if return_outputs else out.loss


class Answers(torch.utils.data.Dataset):
    """Rewarded answers: random ones here, of even or odd tokens."""

    def __init__(self, rows: int, length: int = 12, vocabulary: int = 64):
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, vocabulary, (rows, length), generator=draw)
        self.prompt = torch.randint(2, length - 2, (rows,), generator=draw)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        ids, counts = self.ids[i], torch.arange(self.ids.shape[1]) >= self.prompt[i]
        reward = (ids % 2 == 0)[counts].float().mean()
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.where(counts, ids, -100),
            "advantage": reward - 0.5,
            "old_logprob": torch.full(ids.shape, float("nan")),  # on policy: the ratio is 1
        }


def make_trainer(output: str, *, batch: int = 8, accumulation: int = 1, steps: int = 4):
    """Returns a trainer of a model of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    on_cpus = torch.distributed.is_torchelastic_launched() and not torch.cuda.is_available()
    arguments = TrainingArguments(
        output,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        average_tokens_across_devices=True,
        max_steps=steps,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if on_cpus else None,
        remove_unused_columns=False,
        disable_tqdm=True,
        max_grad_norm=0.0,
    )
    trainer = PolicyTrainer(LlamaForCausalLM(config), arguments, train_dataset=Answers(64))
    trainer.model_accepts_loss_kwargs = True  # so that it counts the labels of a whole step
    return trainer


if __name__ == "__main__":
    print(make_trainer("runs/hf-trainer").train())
