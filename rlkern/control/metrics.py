# SPDX-License-Identifier: Apache-2.0
"""The one table of what a control run measures; the display, the plots and the docs read it."""

from __future__ import annotations

from rlkern.runs.metric import Metric

_RETURN = "return of an episode"
_LENGTH = "steps of an episode"
_SPEED = "environment steps a second"
_LOSS = "losses"
_ENTROPY = "entropy of the policy, nats"
_EXPLORE = "exploration: epsilon, or the entropy's weight"
_VALUE = "values: mean of Q or V"
_ERROR = "distance to the true values"
_VARIANCE = "explained variance of the values"
_KL = "KL from the policy before the update, nats"

# In the order of interest, which is that of the terminal. Names are CleanRL's where it has one.
METRICS = (
    Metric("eval/return", "mean return of evaluation episodes, without exploration", "eval",
           "{:.1f}", panel=_RETURN, curve="evaluation", color="orange"),
    Metric("eval/return_std", "their spread"),
    Metric("eval/length", "their mean length"),
    Metric("charts/episodic_return", "mean return of the episodes since the last line", "return",
           "{:.1f}", panel=_RETURN, curve="training"),
    Metric("charts/episodic_length", "their mean length", "length", "{:.0f}", panel=_LENGTH),
    Metric("charts/episodes", "episodes that have ended so far"),
    Metric("charts/SPS", "environment steps a second since the last line", "steps/s", "{:.0f}",
           panel=_SPEED),
    Metric("eval/rmse", "root mean square distance to the true values of the states", "RMSE",
           "{:.3f}", panel=_ERROR),
    Metric("losses/policy_loss", "loss of the policy", "policy", panel=_LOSS, curve="policy"),
    Metric("losses/value_loss", "loss of the value function", "value", panel=_LOSS, curve="value",
           color="orange"),
    Metric("losses/td_loss", "temporal-difference loss of the action values", "td", panel=_LOSS,
           curve="TD", color="green"),
    Metric("losses/td_error", "size of the last temporal-difference error, of Monte Carlo the mean"
           " of the last episode", "error", panel=_LOSS,
           curve="|TD error|", color="grey"),
    Metric("losses/q_values", "mean action value", "Q", "{:.1f}", panel=_VALUE),
    Metric("losses/entropy", "entropy of the policy", "entropy", panel=_ENTROPY),
    Metric("losses/approx_kl", "KL from the policy before the update (k3)", "kl", "{:.4f}",
           panel=_KL),
    Metric("losses/clipfrac", "share of clipped steps"),
    Metric("losses/explained_variance", "1 − Var(return − value) / Var(return)",
           panel=_VARIANCE),
    Metric("losses/alpha", "weight of the entropy", "alpha", panel=_EXPLORE, curve="alpha"),
    Metric("losses/alpha_loss", "loss of that weight"),
    Metric("losses/grad_norm", "gradient norm before clipping"),
    Metric("charts/epsilon", "share of random actions", "epsilon", panel=_EXPLORE,
           curve="epsilon"),
    Metric("charts/learning_rate", "learning rate"),
    Metric("seconds", "wall time of the run"),
)  # fmt: skip
