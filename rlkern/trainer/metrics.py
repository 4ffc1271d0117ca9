# SPDX-License-Identifier: Apache-2.0
"""The one table of what a run measures; the display, the plots and the docs read it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A key of metrics.jsonl.

    key      {name} in it stands for any word, such as that of a reward function
    meaning  what it is, with its unit
    label    what the terminal calls it; empty if it is not shown there
    form     format of its number on the terminal
    line     whether a plain line shows it too, not only the live panel
    panel    title of the plot that it is drawn in; empty if it is not drawn
    curve    its label in that plot, and its color there
    healthy  where it lies in runs that learned; a run outside is not wrong, but worth a look
    watch    which algorithms' pages list it: a name of rlkern.compare.guide.AUDIENCES
    """

    key: str
    meaning: str
    label: str = ""
    form: str = "{:.3f}"
    line: bool = True
    panel: str = ""
    curve: str = ""
    color: str = "blue"
    healthy: str = ""
    watch: str = ""

    @property
    def pattern(self) -> re.Pattern[str]:
        """What matches the key."""
        return re.compile(re.sub(r"\\\{\w+\\\}", r"([^/]+)", re.escape(self.key)))


_REWARD = "reward of training rollouts"
_PAIRS = "pairs of a batch: share with the chosen ahead"
_MARGINS = "rewards of the answers in pairs"
_LOSS = "loss"
_VALUE = "value function: explained variance, and loss"
_REWARD_KL = "KL of an answer to the start, nats, and its cost"
_GROUPS = "groups sampled so far, and those with unequal rewards"
_ENTROPY = "entropy and KL to the start, nats"
_CLIPPED = "share of clipped tokens"
_LENGTH = "length of the answers, tokens"
_GRADIENT = "gradient norm before clipping"

# In the order of interest, which is that of the terminal and of the pages.
METRICS = (
    Metric(
        "eval/accuracy",
        "held-out accuracy: of the first of eval.modes, or of pairs put in order",
        healthy="rises; look at it before any other",
        watch="every",
    ),
    Metric("eval/accuracy_{mode}", "held-out accuracy of sampled or greedy answers"),
    Metric("eval/pass@{k}", "chance that one of k sampled answers is right"),
    Metric("eval/pair_accuracy", "share of held-out pairs whose chosen answer is ahead"),
    Metric("eval/pair_{what}", "the same by means over tokens, and the mean lead of the chosen"),
    Metric("eval/score_{which}", "mean and spread of a reward model's scores of held-out pairs"),
    Metric(
        "reward",
        "mean reward of the rollouts",
        "reward",
        panel=_REWARD,
        curve="reward",
        healthy="rises, a little ahead of eval/accuracy",
        watch="online",
    ),
    Metric("reward_std", "mean spread of the rewards in a group"),
    Metric("rewards/{function}/mean", "mean reward by one function"),
    Metric("rewards/{function}/std", "its spread over the rollout"),
    Metric(
        "rewards/accuracies",
        "share of the batch's pairs that are in the right order",
        "chosen ahead",
        panel=_PAIRS,
        healthy="from 0.5 to above 0.8",
        watch="pairs",
    ),
    Metric(
        "rewards/chosen",
        "mean reward of chosen answers",
        panel=_MARGINS,
        curve="chosen",
        color="green",
    ),
    Metric(
        "rewards/rejected",
        "mean reward of rejected answers",
        panel=_MARGINS,
        curve="rejected",
        color="red",
    ),
    Metric(
        "rewards/margins",
        "lead of the chosen answer over the rejected one, in units of the loss",
        "margin",
        panel=_MARGINS,
        curve="margins",
        color="grey",
        healthy="rises from 0; if logps/chosen falls at the same time, lower the learning rate",
        watch="pairs",
    ),
    Metric("rewards/{which}", "share of answers that are unscorable; late ones (reward.timeout)"),
    Metric("logps/{which}", "mean log-probability of chosen and of rejected answers"),
    Metric(
        "loss",
        "the objective of the last step",
        "loss",
        "{:.4f}",
        panel=_LOSS,
        healthy="near 0 from the start, and no bug: at ratio 1 a loss of centred advantages is 0,"
        " its gradient is not",
        watch="ratio",
    ),
    Metric(
        "critic/vf_loss",
        "half the squared error of the value function",
        "value loss",
        "{:.4f}",
        panel=_VALUE,
        curve="loss",
        color="orange",
        healthy="falls",
        watch="value",
    ),
    Metric(
        "critic/vf_explained_var",
        "share of the returns' variance that the value function explains",
        "explained",
        "{:.2f}",
        panel=_VALUE,
        curve="explained variance",
        color="green",
        healthy="above 0.2 once warm; at or below 0 it adds noise: warm it up longer"
        " (critic.warmup)",
        watch="value",
    ),
    Metric("critic/{which}", "mean value, and the share of values where the value clip decides"),
    Metric(
        "kl",
        "divergence from the starting model, nats per token; logged if the model is kept",
        "kl",
        "{:.4f}",
        panel=_ENTROPY,
        curve="kl",
        color="red",
        healthy="rises slowly from 0; a jump says that the step or the learning rate is too large",
        watch="kl in the loss",
    ),
    Metric(
        "objective/kl",
        "divergence of answers from the starting model, nats; logged if it is in the reward",
        "kl in reward",
        panel=_REWARD_KL,
        curve="kl",
        color="red",
        healthy="a few nats; a reward that rises along with tens of them is won by leaving the"
        " language",
        watch="kl in the reward",
    ),
    Metric(
        "objective/non_score_reward",
        "the KL's part of the reward",
        panel=_REWARD_KL,
        curve="what it adds to the reward",
        color="grey",
    ),
    Metric("objective/{part}", "entropy, scores, rlhf_reward and kl_coef, as TRL names them"),
    Metric(
        "entropy",
        "of the next token, nats, at the temperature of the sampler",
        "entropy",
        panel=_ENTROPY,
        curve="entropy",
        color="green",
        healthy="falls slowly; near 0 all answers to a prompt are the same",
        watch="online",
    ),
    Metric(
        "clip_ratio/low_mean",
        "share of tokens clipped below",
        "clip low",
        panel=_CLIPPED,
        curve="low",
    ),
    Metric(
        "clip_ratio/high_mean",
        "share of tokens clipped above",
        "clip high",
        panel=_CLIPPED,
        curve="high",
        color="orange",
    ),
    Metric(
        "clip_ratio/region_mean",
        "share of tokens whose ratio lies where the clip takes the gradient away",
        healthy="0 in the first update on a rollout, below 0.2 over all of them",
        watch="clip of tokens",
    ),
    Metric(
        "clip_ratio/region_mean",
        "share of tokens in answers whose ratio lies where the clip takes the gradient away",
        healthy="0 in the first update on a rollout; then 0.1 to 0.5 is usual, because whole"
        " answers are clipped: about a hundred times the share of a clip of tokens",
        watch="clip of answers",
    ),
    Metric("ratio/{which}", "mean, least and greatest ratio to the policy that sampled"),
    Metric("correction", "mean factor of the loss: the mismatch's correction, times a statistic's"),
    Metric(
        "frac_reward_zero_std",
        "share of groups whose answers all have the same reward and teach nothing",
        "equal groups",
        "{:.2f}",
        panel=_REWARD,
        curve="share of groups with equal rewards",
        color="grey",
        healthy="below 0.5; near 1 the prompts are too easy or too hard, or the groups too small",
        watch="groups",
    ),
    Metric(
        "sampling/groups_sampled",
        "groups sampled so far, including those that were dropped",
        panel=_GROUPS,
        curve="sampled",
        color="grey",
        healthy="at most 3 per group that is trained on; beyond that other prompts are cheaper",
        watch="dynamic sampling",
    ),
    Metric(
        "sampling/useful_groups",
        "groups so far whose rewards differ",
        panel=_GROUPS,
        curve="useful",
        healthy="at least half of sampling/groups_sampled; else a batch is mostly copies",
        watch="duplicated groups",
    ),
    Metric("sampling/{which}", "groups of this step, tokens so far, tokens of unknown_logprobs"),
    Metric("sampling/sampling_logp_difference/{which}", "|log π by trainer − by sampler|"),
    Metric("sampling/importance_sampling_ratio/{which}", "factor of the mismatch's correction"),
    Metric("rollout_corr/{which}", "distance of trainer and sampler: rlkern.off_policy_metrics"),
    Metric(
        "completions/clipped_ratio",
        "share of answers cut off at rollout.max_new_tokens",
        healthy="below 0.1; else allow longer answers or punish them",
        watch="online",
    ),
    Metric(
        "completions/mean_length",
        "mean length of the answers, tokens",
        "length",
        "{:.1f}",
        line=False,
        panel=_LENGTH,
        curve="mean",
    ),
    Metric(
        "completions/max_length",
        "longest answer, tokens",
        panel=_LENGTH,
        curve="longest",
        color="grey",
    ),
    Metric("completions/{which}", "lengths of all answers, and of those that ended by themselves"),
    Metric(
        "grad_norm",
        "norm of the policy's gradient before clipping",
        "grad",
        "{:.2f}",
        line=False,
        panel=_GRADIENT,
        color="red",
        healthy="no spikes beyond ten times its median",
        watch="every",
    ),
    Metric(
        "skipped_updates",
        "updates skipped so far: loss or gradient was not finite",
        "skipped",
        "{:.0f}",
        line=False,
        healthy="0",
        watch="every",
    ),
    Metric("degenerate_steps", "rollouts so far that taught nothing"),
    Metric("learning_rate", "of the policy, in the last update"),
    Metric("unchanged_weights", "share of bfloat16 weights that updates left as they were"),
    Metric("num_tokens", "tokens trained on so far"),
    Metric("compare/{which}", "difference to the loss of loss.compare"),
    Metric("time/{part}", "seconds of a part of the step, such as asking the reward functions"),
    Metric("step_time", "seconds of the step"),
    Metric("seconds", "seconds of the run"),
)
