# SPDX-License-Identifier: Apache-2.0
"""slime's and miles' custom loss: every algorithm of rlkern by its name. Not run inside them.

    # losses.py
    from rlkern.integrations.slime import custom_loss

    gmpo = custom_loss("gmpo", clip_low=0.33, clip_high=0.49)

and `--loss-type custom_loss --custom-loss-function-path losses.gmpo`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.aggregate import token_weight
from rlkern.integrations import _served

_REFUSED = ("use_tis", "use_opsm", "use_unbiased_kl", "get_mismatch_metrics")


def custom_loss(algorithm: str, **coefficients: Any) -> Callable[..., tuple[Tensor, dict]]:
    """Returns a loss of slime's signature.

    slime scores the tokens, over Megatron's slices of the vocabulary, and sum_of_sample_mean
    reduces the terms of the loss, so the reduction is slime's. entropy_coef and, with use_kl_loss,
    kl_loss_coef are taken from args. Raises ValueError for an algorithm or a coefficient that is
    not one; the loss does for options that slime's own applies and this one does not, and for
    sequences that are spread over ranks (context parallelism).
    """
    if own := [name for name in ("kl_coef", "entropy_coef") if name in coefficients]:
        raise TypeError(f"custom_loss: {own[0]} is an option of slime and no coefficient")
    _served.check(algorithm, {**coefficients, "kl_coef": 0.0, "entropy_coef": 0.0}, "slime")

    def loss(
        args: Any, batch: dict[str, Any], logits: Tensor, sum_of_sample_mean: Callable
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if on := [name for name in _REFUSED if getattr(args, name, False)]:
            raise ValueError(f"{algorithm}: {', '.join(on)} must be off with rlkern's loss")
        slime = importlib.import_module("slime.backends.megatron_utils.loss")
        lengths = {name: batch[name] for name in ("total_lengths", "response_lengths")}
        top_p = slime.get_rollout_top_p_logprob_kwargs(args, batch)
        tokens = batch["unconcat_tokens"]
        _, scored = slime.get_log_probs_and_entropy(
            logits, args=args, unconcat_tokens=tokens, with_entropy=True, **lengths, **top_p
        )
        whole = [len(x) for x in scored["log_probs"]]
        if whole != list(batch["response_lengths"]):
            raise ValueError(f"{algorithm}: context_parallel_size must be 1 with rlkern's loss")
        logprob, entropy = (torch.cat(scored[name]) for name in ("log_probs", "entropy"))
        sampled = "rollout_log_probs" if args.use_rollout_logprobs else "log_probs"
        if not (old := batch.get(sampled)):
            raise ValueError(f"{algorithm}: the batch must have {sampled}, got {sorted(batch)}")
        out = rlkern.token_objective(
            logprob, entropy=entropy, old_logprob=torch.cat(old),
            reduction="none", **_terms(algorithm, args, batch, coefficients),
        )  # fmt: skip
        reduced = sum_of_sample_mean(out.loss)
        return reduced, {"loss": reduced.detach()}

    return loss


def _terms(algorithm: str, args: Any, batch: dict[str, Any], coefficients: dict) -> dict[str, Any]:
    """Returns what rlkern.token_objective takes beside the scores."""
    mask = torch.cat(batch["loss_masks"]).bool()
    bounds = torch.tensor([0, *batch["response_lengths"]], device=mask.device).cumsum(0).int()
    kl: dict[str, Any] = {"kl_coef": 0.0}
    if args.use_kl_loss:
        estimator = args.kl_loss_type.replace("low_var_kl", "k3")
        clamp = {"kl_max": 10.0} if args.kl_loss_type == "low_var_kl" else {}
        ref = torch.cat(batch["ref_log_probs"])
        kl = {
            "kl_coef": args.kl_loss_coef, "kl_estimator": estimator, "ref_logprob": ref, **clamp
        }  # fmt: skip
    return {
        "advantage": torch.cat(batch["advantages"]),
        "mask": mask,
        "weight": token_weight(mask, "token_sum", cu_seqlens=bounds),
        "cu_seqlens": bounds,
        "algorithm": algorithm,
        "entropy_coef": args.entropy_coef,
        **kl,
        **coefficients,
    }
