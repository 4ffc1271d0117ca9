# SPDX-License-Identifier: Apache-2.0
"""What other projects offer for the same work on a CPU, each called as its documentation says.

A maker returns {name: call}; a call returns what it computed, the same numbers for every name, so
that they are compared before anything is timed. A project that is not here raises ImportError.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import rlkern
from rlkern.testing import baselines
from rlkern.testing.timed_inputs import GRPO, Inputs, LinearInputs

Outputs = tuple[Tensor, ...]
Calls = dict[str, Callable[[], Outputs]]
Maker = Callable[[], Calls]
SMOKE = False  # nothing compiled: only whether it runs


def compiled(function: Callable) -> Callable:
    """Returns a function under torch.compile, with nothing remembered of other sizes."""
    torch._dynamo.reset()
    return torch.compile(function, backend="eager" if SMOKE else "inductor")


def logprob(x: Inputs) -> dict[str, Maker]:
    """Returns the log-probabilities of tokens and the gradient of their mean, from logits."""
    leaf = x.source.requires_grad_()

    def of(score: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Outputs]:
        def run() -> Outputs:
            found = score(leaf, x.token)
            return found.detach(), *torch.autograd.grad(found.mean(), leaf)

        return run

    def cross_entropy(logits: Tensor, token: Tensor) -> Tensor:
        flat = functional.cross_entropy(logits.flatten(0, 1), token.flatten(), reduction="none")
        return -flat.view_as(token)

    def trl() -> Calls:
        return {"TRL selective_log_softmax": of(_trl().selective_log_softmax)}

    def verl() -> Calls:
        return {"verl logprobs_from_logits": of(_verl().logprobs_from_logits)}

    return {
        "rlkern": lambda: {"rlkern": of(lambda z, token: rlkern.token_logprob(z, token).logprob)},
        "eager": lambda: {"eager": of(baselines.eager_logprob)},
        "torch.compile": lambda: {"torch.compile": of(compiled(baselines.eager_logprob))},
        "F.cross_entropy": lambda: {"F.cross_entropy": of(cross_entropy)},
        "TRL": trl,
        "verl": verl,
    }


def logprob_and_entropy(x: Inputs) -> dict[str, Maker]:
    """Returns log-probabilities and entropies from logits, without a gradient."""

    def of(score: Callable[[Tensor, Tensor], Outputs]) -> Callable[[], Outputs]:
        def run() -> Outputs:
            with torch.no_grad():
                return score(x.source, x.token)

        return run

    def ours(logits: Tensor, token: Tensor) -> Outputs:
        found = rlkern.token_logprob(logits, token)
        return found.logprob, found.entropy

    def trl() -> Calls:
        score, entropy = _trl().selective_log_softmax, _trl().entropy_from_logits
        return {"TRL selective_log_softmax, entropy_from_logits": of(
            lambda z, token: (score(z, token), entropy(z)))}  # fmt: skip

    def verl() -> Calls:
        score, entropy = _verl().logprobs_from_logits, _verl().entropy_from_logits
        return {"verl logprobs_from_logits, entropy_from_logits": of(
            lambda z, token: (score(z, token), entropy(z)))}  # fmt: skip

    eager = baselines.eager_logprob_and_entropy
    return {
        "rlkern": lambda: {"rlkern": of(ours)},
        "eager": lambda: {"eager": of(eager)},
        "torch.compile": lambda: {"torch.compile": of(compiled(eager))},
        "TRL": trl,
        "verl": verl,
    }


def linear_logprob(x: LinearInputs) -> dict[str, Maker]:
    """Returns the mean of −log π and its gradients, from hidden states and a head."""
    token, rows = x.token.flatten(), x.token.numel()

    def of(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Outputs]:
        def run() -> Outputs:
            found = loss(x.hidden.view(rows, -1), x.head)
            return found.detach(), *torch.autograd.grad(found, [x.hidden, x.head])

        return run

    def ours(hidden: Tensor, head: Tensor) -> Tensor:
        scored = rlkern.linear_token_logprob(hidden[None], head, token[None])
        return -scored.logprob.mean()

    def eager(hidden: Tensor, head: Tensor) -> Tensor:
        return -baselines.eager_logprob(functional.linear(hidden, head), token).mean()

    def torchs() -> Calls:
        if not hasattr(functional, "linear_cross_entropy"):
            raise ImportError(f"torch {torch.__version__} has no F.linear_cross_entropy")
        cross_entropy = functional.linear_cross_entropy
        return {
            "F.linear_cross_entropy": of(lambda hidden, head: cross_entropy(hidden, head, token))
        }

    def trl() -> Calls:
        function, width = _trl()._ChunkedLogProbFunction, _trl()._CHUNKED_LOGPROB_CHUNK_SIZE
        rest = (None, token, 1.0, width, None, 1.0, ())
        return {"TRL ChunkedLogProbFunction": of(
            lambda hidden, head: -function.apply(hidden, head, *rest)[0].mean())}  # fmt: skip

    def cut() -> Calls:
        cross_entropy = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        way = "torch_compile"  # the portable one
        return {"cut-cross-entropy linear_cross_entropy": of(
            lambda hidden, head: cross_entropy(hidden, head, token, impl=way))}  # fmt: skip

    def verl() -> Calls:
        module = importlib.import_module("verl.utils.experimental.torch_functional")
        fused = module.FusedLinearForPPO()
        return {"verl FusedLinearForPPO": of(
            lambda hidden, head: -fused(hidden[None], head, token[None])[0].mean())}  # fmt: skip

    return {
        "rlkern": lambda: {"rlkern": of(ours)},
        "eager": lambda: {"eager": of(eager)},
        "torch.compile": lambda: {"torch.compile": of(compiled(eager))},
        "F.linear_cross_entropy": torchs,
        "cut-cross-entropy": cut,
        "TRL": trl,
        "verl": verl,
    }


def linear_grpo(x: LinearInputs) -> dict[str, Maker]:
    """Returns the loss of GRPO with a KL term and its gradients, from hidden states and a head."""

    def of(loss: Callable[[], Tensor]) -> Callable[[], Outputs]:
        def run() -> Outputs:
            found = loss()
            return found.detach(), *torch.autograd.grad(found, [x.hidden, x.head])

        return run

    rows = (x.token, x.advantage, x.weight, x.old, x.ref)

    def eager(hidden: Tensor, head: Tensor, *rest: Tensor) -> Tensor:
        return baselines.eager_grpo_loss(functional.linear(hidden, head), *rest)

    def ours() -> Tensor:
        return rlkern.linear_policy_loss(
            x.hidden, x.head, x.token, x.advantage, x.mask, old_logprob=x.old, ref_logprob=x.ref,
            weight=x.weight, **GRPO,
        ).loss  # fmt: skip

    def liger() -> Calls:
        module = importlib.import_module("liger_kernel.chunked_loss.grpo_loss")
        fused = module.LigerFusedLinearGRPOLoss(
            beta=GRPO["kl_coef"], epsilon_low=GRPO["clip_low"], epsilon_high=GRPO["clip_high"],
            compiled=not SMOKE,
        )  # fmt: skip
        return {"Liger LigerFusedLinearGRPOLoss": of(lambda: fused(
            x.hidden, x.head, x.token, x.mask.float(), x.advantage[:, 0],
            ref_per_token_logps=x.ref, old_per_token_logps=x.old,
        )[0])}  # fmt: skip

    return {
        "rlkern": lambda: {"rlkern": of(ours)},
        "eager": lambda: {"eager": of(lambda: eager(x.hidden, x.head, *rows))},
        "torch.compile": lambda: _compiled_grpo(x, eager, rows, of),
        "Liger": liger,
    }


def _compiled_grpo(x: LinearInputs, eager: Callable, rows: Outputs, of: Callable) -> Calls:
    fast = compiled(eager)
    return {"torch.compile": of(lambda: fast(x.hidden, x.head, *rows))}


class Steps(NamedTuple):
    """Rewards and values of sequences, none of them padded."""

    reward: Tensor
    value: Tensor
    mask: Tensor

    @classmethod
    def of(cls, B: int, T: int) -> Steps:
        """Returns normal ones."""
        random = torch.Generator().manual_seed(0)
        reward, value = torch.randn(2, B, T, generator=random)
        return cls(reward, value, torch.ones(B, T, dtype=torch.bool))


def gae(x: Steps) -> dict[str, Maker]:
    """Returns whitened advantages and the returns beside them."""

    def ours() -> Outputs:
        found = rlkern.gae(*x, discount=0.99, gae_lambda=0.95, whiten=True)
        return found.advantage, found.target

    def loop() -> Outputs:
        advantage, target = baselines.python_loop_gae(x.reward, x.value, 0.99, 0.95)
        return (advantage - advantage.mean()) / advantage.std(), target

    def verl() -> Calls:
        function = importlib.import_module(
            "verl.trainer.ppo.core_algos"
        ).compute_gae_advantage_return
        mask = x.mask.float()
        return {"verl compute_gae_advantage_return": lambda: function(
            x.reward, x.value, mask, 0.99, 0.95)}  # fmt: skip

    def torchrl() -> Calls:
        functions = importlib.import_module("torchrl.objectives.value.functional")
        done = torch.zeros_like(x.mask)[..., None]
        done[:, -1] = True
        following = torch.cat([x.value[:, 1:], torch.zeros_like(x.value[:, :1])], 1)[..., None]

        def run() -> Outputs:
            advantage, target = functions.vec_generalized_advantage_estimate(
                0.99, 0.95, x.value[..., None], following, x.reward[..., None], done, done
            )
            return ((advantage - advantage.mean()) / advantage.std())[..., 0], target[..., 0]

        return {"torchrl vec_generalized_advantage_estimate": run}

    return {
        "rlkern": lambda: {"rlkern": ours},
        "eager": lambda: {"eager, a loop over time": loop},
        "verl": verl,
        "torchrl": torchrl,
    }


def _trl() -> Any:
    return importlib.import_module("trl.trainer.utils")


def _verl() -> Any:
    return importlib.import_module("verl.utils.torch_functional")
