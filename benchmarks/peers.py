# SPDX-License-Identifier: Apache-2.0
"""The same work by other projects, where they are installed: nothing here depends on them.

They are called through their public functions, with the arguments nearest to ours; what differs is
said where it differs.
"""

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from rlkern.testing.timed_inputs import GRPO, GSPO, Inputs, LinearInputs

Call = Callable[[], object]
# Returns {row: (call, passes over the logits)}.
Maker = Callable[[Any], dict[str, tuple[Call, int]]]


def _liger_loss(triton_grpo_loss: Callable, inputs: Inputs, objective: dict, **options) -> Call:
    """Returns loss and gradient in place by Liger's Triton kernels.

    They score all positions but the last, and take one advantage per sequence.
    """

    def rows(x: torch.Tensor) -> torch.Tensor:
        return x[:, :-1].contiguous()

    fixed: dict[str, Any] = {
        "old_logp": rows(inputs.old),
        "ref_logp": rows(inputs.ref),
        "completion_ids": rows(inputs.token),
        "advantages": inputs.advantage[:, 0].contiguous(),
        "completion_mask": rows(inputs.mask).to(torch.int32),
        "temperature": 1.0,
        "beta": objective["kl_coef"],
        "eps_low": objective["clip_low"],
        "eps_high": objective["clip_high"],
        "inplace": True,
        **options,
    }

    def run() -> None:
        loss = triton_grpo_loss(inputs.non_leaf(), **fixed)[0]
        loss.backward(torch.full_like(loss, 1 / loss.numel()))

    return run


def liger(inputs: Inputs) -> dict[str, tuple[Call, int]]:
    """Returns Liger's GRPO and GSPO."""
    function = importlib.import_module("liger_kernel.transformers.grpo_loss").triton_grpo_loss
    level = {"importance_sampling_level": "sequence"}
    return {
        "liger_policy_loss_in_place": (_liger_loss(function, inputs, GRPO), 2),
        "liger_gspo_in_place": (_liger_loss(function, inputs, GSPO, **level), 3),
    }


def trl(inputs: Inputs) -> dict[str, tuple[Call, int]]:
    """Returns what TRL's trainers score with: log-probability and entropy, forward only."""
    utils = importlib.import_module("trl.trainer.utils")

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            logprob = utils.selective_log_softmax(inputs.source, inputs.token)
            return logprob, utils.entropy_from_logits(inputs.source)

    return {"trl_logprob_and_entropy": (run, 1)}


def flash_attn(inputs: Inputs) -> dict[str, tuple[Call, int]]:
    """Returns flash-attn's cross entropy: log-probability and its gradient in place, no entropy."""
    function = importlib.import_module("flash_attn.ops.triton.cross_entropy").cross_entropy_loss
    token = inputs.token.flatten()
    upstream = inputs.advantage.flatten().contiguous()

    def run() -> None:
        logits = inputs.non_leaf().view(token.numel(), -1)
        function(logits, token, inplace_backward=True)[0].backward(upstream)

    return {"flash_attn_cross_entropy_in_place": (run, 3)}


def liger_linear(inputs: LinearInputs) -> dict[str, tuple[Call, int]]:
    """Returns Liger's losses from hidden states: GRPO in chunks of a sequence, cross entropy.

    Its cross entropy has neither ratio, KL nor entropy: it is the least such a kernel can do.
    """
    grpo = importlib.import_module("liger_kernel.chunked_loss.grpo_loss").LigerFusedLinearGRPOLoss
    entropy = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss
    hidden, head = inputs.hidden, inputs.head
    chunked = grpo(
        beta=GRPO["kl_coef"], epsilon_low=GRPO["clip_low"], epsilon_high=GRPO["clip_high"],
    )  # fmt: skip
    cross_entropy = entropy()

    def run_grpo() -> None:
        loss, _ = chunked(
            hidden, head, inputs.token, inputs.mask.long(), inputs.advantage[:, 0],
            ref_per_token_logps=inputs.ref, old_per_token_logps=inputs.old,
        )  # fmt: skip
        torch.autograd.grad(loss, [hidden, head])

    def run_cross_entropy() -> None:
        loss = cross_entropy(head, hidden.flatten(0, 1), inputs.token.flatten())
        torch.autograd.grad(loss, [hidden, head])

    return {
        "liger_linear_grpo": (run_grpo, 0),
        "liger_linear_cross_entropy": (run_cross_entropy, 0),
    }


PEERS: dict[str, Maker] = {"liger_kernel": liger, "trl": trl, "flash_attn": flash_attn}
LINEAR_PEERS: dict[str, Maker] = {"liger_kernel": liger_linear}


def _rows(peers: dict[str, Maker], inputs: Any) -> tuple[dict[str, tuple[Call, int]], dict]:
    found: dict[str, tuple[Call, int]] = {}
    absent: dict[str, str] = {}
    for name, make in peers.items():
        if find_spec(name) is None:
            absent[name] = "not installed"
            continue
        try:
            found |= make(inputs)
        except (ImportError, AttributeError) as error:
            absent[name] = f"cannot be imported: {error}".splitlines()[0]
    return found, absent


def rows(inputs: Inputs) -> tuple[dict[str, tuple[Call, int]], dict[str, str]]:
    """Returns the rows of the peers that are here, and why the others are not."""
    return _rows(PEERS, inputs)


def linear_rows(inputs: LinearInputs) -> tuple[dict[str, tuple[Call, int]], dict[str, str]]:
    """Returns the same of those that begin with hidden states."""
    return _rows(LINEAR_PEERS, inputs)
