# SPDX-License-Identifier: Apache-2.0
"""Makes a causal language model of transformers score given tokens without storing its logits."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from rlkern.integrations.find_head import find_head
from rlkern.integrations.head import Caught, aux_loss, forward_of
from rlkern.ops.linear_token_logprob import linear_token_logprob


class MixtureLogprob(NamedTuple):
    """TokenLogprob of a mixture of experts, and what transformers adds to its loss."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    sum_pi_squared: Tensor
    aux_loss: Tensor


@contextlib.contextmanager
def fused_head(model: nn.Module) -> Iterator[nn.Module]:
    """Makes a model score given tokens inside the with block; its logits are never stored.

        with rlkern.fused_head(model):
            out = model(input_ids=..., attention_mask=..., token=token, mask=mask)
        out.logprob, out.entropy                                     # rlkern.TokenLogprob, (B, T)

    token[b, t] is scored by the hidden state at [b, t]: nothing is shifted. A token of fewer
    columns than the input is the answer that the input ends in, and is scored by as many hidden
    states, each one before its own. mask, temperature, keep and wave are those of
    rlkern.linear_token_logprob. Without token the model is as it was.

    The head may be tied to the embeddings, in another dtype than the hidden states, or carry a LoRA
    adapter of PEFT, which is used without being merged. Gradients reach all of it. The result for a
    mixture of experts whose configuration says output_router_logits has a field aux_loss: what
    transformers adds to a loss, its coefficient included. Works under
    gradient checkpointing, DDP, torch.compile (compile inside the with block) and FSDP2 as long as
    the head is gathered with the root module; a head that is spread over ranks is refused.

    Arguments
        model  a causal language model of transformers, also wrapped by PEFT, DDP or torch.compile
    Raises
        TypeError, ValueError  for a model without a head, or whose logits are more than a head's,
                               a scale and a softcap (its configuration's)

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4}
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=1))
    >>> _ = model.lm_head.weight.data.zero_()
    >>> with fused_head(model), torch.no_grad():
    ...     out = model(input_ids=torch.tensor([[1, 2]]), token=torch.tensor([[2, 3]]))
    >>> out.logprob.exp()
    tensor([[0.1250, 0.1250]])
    """
    found = find_head(model)
    original, caught = found.causal.forward, Caught(found.head.forward)

    def forward(
        *args: Any,
        token: Tensor | None = None,
        mask: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        keep: Tensor | None = None,
        wave: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if token is None:
            return original(*args, **kwargs)
        hidden, output = caught.run(original, *args, **kwargs)
        T = token.shape[1]
        if T < hidden.shape[1]:
            hidden = hidden[:, -T - 1 : -1]
        head = found.parameters()
        scores = linear_token_logprob(
            hidden, head.pop("weight"), token, mask=mask, temperature=temperature, keep=keep,
            wave=wave, **head,
        )  # fmt: skip
        added = aux_loss(found.causal, output)
        return scores if added is None else MixtureLogprob(*scores[:4], added)

    with forward_of(found.head, caught), forward_of(found.causal, forward):
        yield model
