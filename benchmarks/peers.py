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

from benchmarks.inputs import GRPO, GSPO, Inputs

Call = Callable[[], object]


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


PEERS = {"liger_kernel": liger, "trl": trl, "flash_attn": flash_attn}


def rows(inputs: Inputs) -> tuple[dict[str, tuple[Call, int]], dict[str, str]]:
    """Returns the rows of the peers that are here, and why the others are not."""
    found: dict[str, tuple[Call, int]] = {}
    absent: dict[str, str] = {}
    for name, make in PEERS.items():
        if find_spec(name) is None:
            absent[name] = "not installed"
            continue
        try:
            found |= make(inputs)
        except (ImportError, AttributeError) as error:
            absent[name] = f"cannot be imported: {error}".splitlines()[0]
    return found, absent
