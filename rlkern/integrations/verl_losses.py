# SPDX-License-Identifier: Apache-2.0
"""rlkern's algorithms as policy losses of verl: what verl passes and configures, as token_objective
takes it.

The functions are made from the declarations of rlkern.algorithms; none is written by hand. verl
adds the entropy bonus (actor.entropy_coeff) and the KL term (actor.use_kl_loss) itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.aggregate import token_weight
from rlkern.algorithms import Algorithm
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.integrations import _served

PREFIX = "rlkern_"
# verl's options that a loss takes, each as the coefficient that it is; the second where the first
# is not given.
OPTIONS = {
    "clip_low": ("clip_ratio_low", "clip_ratio"),
    "clip_high": ("clip_ratio_high", "clip_ratio"),
    "clip_cap": ("clip_ratio_c",),
    "tau_positive": ("tau_pos",),
    "tau_negative": ("tau_neg",),
    "beta": ("policy_loss.dro_beta",),
}
# Options of verl's own losses that no loss of rlkern takes.
FOREIGN = (
    "policy_loss.clip_cov_ratio",
    "policy_loss.clip_cov_lb",
    "policy_loss.clip_cov_ub",
    "policy_loss.kl_cov_ratio",
    "policy_loss.ppo_kl_coef",
)
# What verl adds to the loss, by the coefficient of rlkern that asks for it.
TERMS = {"kl_coef": "use_kl_loss", "entropy_coef": "entropy_coeff"}
KL_ESTIMATORS = {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}
AGGREGATIONS = {
    "token-mean": "token_mean",
    "token-sum": "token_sum",
    "seq-mean-token-mean": "sequence_token_mean",
    "seq-mean-token-sum": "sequence_token_sum",
    "seq-mean-token-sum-norm": "sequence_token_sum",
}
_SCALED = "seq-mean-token-sum-norm"


def weights(
    mask: Tensor,
    loss_agg_mode: str,
    *,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
) -> Tensor:
    """Returns the weight (B, T) of each token, with which a sum is what verl's agg_loss makes.

    The keywords are those of verl's `global_batch_info`.

    Raises ValueError for an unknown mode, for loss_scale_factor with a mode that does not divide by
    it, and for several ranks without the count of all of them.

    >>> weights(torch.tensor([[True, True], [True, False]]), "token-mean", batch_num_tokens=6)[0, 0]
    tensor(0.1667)
    """
    if loss_agg_mode not in AGGREGATIONS:
        raise ValueError(
            f"loss_agg_mode must be one of {', '.join(AGGREGATIONS)}, got {loss_agg_mode!r}"
        )
    if loss_scale_factor is not None and loss_agg_mode != _SCALED:
        raise ValueError(
            f"loss_scale_factor belongs to loss_agg_mode {_SCALED!r}, got {loss_agg_mode!r}"
        )
    mode = AGGREGATIONS[loss_agg_mode]
    if mode == "token_sum":
        return token_weight(mask, mode, dp_size=dp_size)
    of_tokens = mode == "token_mean"
    count = batch_num_tokens if of_tokens else global_batch_size
    if count is None and dp_size > 1:
        name = "batch_num_tokens" if of_tokens else "global_batch_size"
        raise ValueError(f"{name} must be given with dp_size {dp_size}, got None")
    constant = None
    if loss_agg_mode == _SCALED:
        constant = mask.shape[-1] if loss_scale_factor is None else loss_scale_factor
    return token_weight(mask, mode, count=count, constant=constant, dp_size=dp_size)


def _option(config: Any, path: str) -> Any:
    """Returns an option of verl's actor by its path, None if it is not there."""
    for part in path.split("."):
        config = None if config is None else config.get(part)
    return config


def _default(path: str) -> Any:
    """Returns what verl sets an option to where a run does not."""
    from verl.workers.config import ActorConfig
    from verl.workers.config.actor import PolicyLossConfig

    *holder, name = path.split(".")
    return getattr(PolicyLossConfig if holder else ActorConfig, name)


def _check(name: str, declared: Algorithm, config: Any) -> None:
    """Raises ValueError for an option of verl that was set and that this loss does not take."""
    if config is None:
        raise ValueError(f"{name}: config must be verl's actor configuration, got None")
    taken = {option for coef in declared.gate_coef for option in OPTIONS.get(coef, ())}
    for option in (*(each for several in OPTIONS.values() for each in several), *FOREIGN):
        given = _option(config, option)
        if option not in taken and given is not None and given != _default(option):
            raise ValueError(
                f"{name}: actor.{option} must be left at {_default(option)}, as this loss does not"
                f" take it, got {given}"
            )
    for coef, option in TERMS.items():
        if declared.defaults[coef] and not _option(config, option):
            raise ValueError(
                f"{name}: actor.{option} must be set, as verl adds the term of {coef}"
                f" {declared.defaults[coef]}, got {_option(config, option)}"
            )


def coefficients(declared: Algorithm, config: Any) -> dict[str, Any]:
    """Returns the coefficients of an algorithm's gate by verl's options, its defaults elsewhere.

    >>> coefficients(find_algorithm("grpo"), {"clip_ratio_low": 0.1, "clip_ratio": 0.3})
    {'clip_low': 0.1, 'clip_high': 0.3}
    """
    found = {}
    for name in declared.gate_coef:
        options = [_option(config, option) for option in OPTIONS.get(name, ())]
        given = [x for x in options if x is not None]
        found[name] = float(given[0]) if given else declared.defaults[name]
    return found


def reason(declared: Algorithm) -> str | None:
    """Returns why an algorithm cannot be a policy loss of verl, or None if it can.

    >>> reason(find_algorithm("a_star_po"))
    'its old_logprob is that of the reference policy, and verl passes the old policy’s'
    """
    return _served.reason(declared, "verl", statistics=rlkern.statistics.OF_ONE_ANSWER)


def settings(declared: Algorithm) -> dict[str, Any]:
    """Returns the options of verl's actor that make its loss that of an algorithm.

    >>> settings(find_algorithm("topr"))
    {'policy_loss.loss_mode': 'rlkern_topr', 'loss_agg_mode': 'seq-mean-token-sum'}
    """
    check_served(declared)
    mode = next(theirs for theirs, ours in AGGREGATIONS.items() if ours == declared.aggregation)
    found: dict[str, Any] = {"policy_loss.loss_mode": PREFIX + declared.name, "loss_agg_mode": mode}
    for name in declared.gate_coef:
        if name in OPTIONS:
            found[OPTIONS[name][0]] = declared.defaults[name]
    if kl_coef := declared.defaults["kl_coef"]:
        estimator = KL_ESTIMATORS[declared.kl_estimator]
        found |= {"use_kl_loss": True, "kl_loss_coef": kl_coef, "kl_loss_type": estimator}
    if entropy_coef := declared.defaults["entropy_coef"]:
        found["entropy_coeff"] = entropy_coef
    return found


def check_served(declared: Algorithm) -> None:
    """Raises ValueError for an algorithm that cannot be a policy loss of verl."""
    if (why := reason(declared)) is not None:
        raise ValueError(f"{declared.name} is no policy loss of verl: {why}")


def policy_loss(algorithm: str | Algorithm) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """Returns an algorithm's loss with the signature of verl's register_policy_loss.

        ℓ = Σ_t weight_t·rollout_is_weights_t·gate(log π, log r, A)

    Clip widths and temperatures are verl's options of the actor (`OPTIONS`), the weights verl's
    aggregation over the global batch. An option that was set and that the loss does not take is
    refused. Metrics are actor/pg_clipfrac, the share of tokens that a clip holds, and actor/ppo_kl.

    verl differs from these formulas where it clamps: log r to ±20, and GSPO's to 10 from above.

    Arguments
        algorithm  a name, or a declaration of one's own, such as one with other coefficients
    Raises
        ValueError  for an algorithm that verl does not pass enough for

    >>> policy_loss("gspo").__name__
    'rlkern_gspo'
    >>> policy_loss("m2po")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: m2po is no policy loss of verl: how its tokens count depends on all tokens of ...
    """
    declared = find_algorithm(algorithm)
    check_served(declared)
    name = PREFIX + declared.name

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        _check(name, declared, config)
        mask = response_mask.bool()
        # The plain path scores in the dtype of the model.
        logprob = log_prob.to(torch.promote_types(log_prob.dtype, torch.float32))
        correction = rollout_is_weights
        if declared.statistic:
            factor = rlkern.statistics.factor(
                logprob, old_log_prob, advantages, mask, algorithm=declared
            )
            correction = factor if correction is None else factor * correction
        out = rlkern.token_objective(
            logprob,
            advantages,
            mask,
            old_logprob=old_log_prob,
            correction=correction,
            weight=weights(mask, loss_agg_mode, **(config.get("global_batch_info") or {})),
            algorithm=declared,
            **(coefficients(declared, config) | dict.fromkeys(TERMS, 0.0)),
        )
        said = rlkern.metrics_dict(out.metrics)
        return out.loss, {
            "actor/pg_clipfrac": said["clip_ratio/region_mean"],
            "actor/ppo_kl": said["old_kl_k1"],
        }

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = f"Returns (loss, metrics) of {declared.name}, {declared.paper}."
    return loss
