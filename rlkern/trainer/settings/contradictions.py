# SPDX-License-Identifier: Apache-2.0
"""Settings that contradict each other or the algorithm."""

from __future__ import annotations

from collections.abc import Callable

from rlkern.runs.errors import UserError
from rlkern.runs.settings.group import Group
from rlkern.trainer.settings.reads import DATA, SAMPLED, Facts, facts, unread
from rlkern.trainer.settings.schema import Settings

# Advantages that compare an answer with something other than the other answers to its prompt.
WITHOUT_GROUP = frozenset(
    "batch_centered gae reward remax optimal reinforce_plus_plus teacher".split()
)
# rlkern.AdaptiveKl.clip, which is not imported here: settings are read without torch.
ADAPTIVE_CLIP = 0.2
# Coefficients that only the KL term of the loss reads.
OF_KL = ("kl_estimator", "kl_max")


def check_contradictions(settings: Settings) -> None:
    """Raises UserError for the first contradiction, with its fix."""
    for contradiction in CONTRADICTIONS:
        sentence = contradiction(settings, facts(settings))
        if sentence:
            raise UserError(sentence)


def _one_answer(settings: Settings, run: Facts) -> str | None:
    size = settings.rollout.group_size
    if size > 1 or not run.samples:
        return None
    if run.judges:
        return (
            f"rollout.group_size must be at least 2 for sampled pairs, because a pair is two"
            f" answers to one prompt, got {size}; raise it, or give a file of pairs"
        )
    if run.advantage not in WITHOUT_GROUP:
        return (
            f"rollout.group_size must be at least 2 for algorithm {settings.algorithm}, whose"
            f" advantages compare the answers to one prompt, got {size}"
        )
    if settings.groups.kind != "all":
        return (
            f"groups.kind {settings.groups.kind} keeps groups whose rewards differ, so"
            f" rollout.group_size must be at least 2, got {size}; raise it, or use groups.kind all"
        )
    return None


def _pieces(settings: Settings, run: Facts) -> str | None:
    batch = settings.batch
    if batch.micro_batches > batch.prompts:
        return f"batch.micro_batches must be at most batch.prompts, got {batch.micro_batches}"
    if batch.minibatches > batch.prompts // batch.micro_batches:
        return (
            "batch.minibatches must be at most batch.prompts / batch.micro_batches, got"
            f" {batch.minibatches}"
        )
    return None


def _deviation_of_nothing(settings: Settings, run: Facts) -> str | None:
    asked = settings.advantage
    if unread("advantage.whiten", run) or asked.whiten or asked.ddof == 1:
        return None
    return (
        "advantage.ddof is of the variance that advantage.whiten divides by: add"
        f" --advantage.whiten true, or leave it out, got {asked.ddof}"
    )


def _one_way_of_training_less(settings: Settings, run: Facts) -> str | None:
    layers = settings.optimizer.train_layers
    if settings.lora is None or not layers:
        return None
    return (
        f"lora.rank {settings.lora.rank} trains only adapters and optimizer.train_layers {layers}"
        " trains weights: give one of the two"
    )


def _checkpointing_without_cache(settings: Settings, run: Facts) -> str | None:
    memory = settings.memory
    if not (memory.gradient_checkpointing and memory.share_prompts):
        return None
    if unread("memory.share_prompts", run):
        return None
    return (
        "memory.gradient_checkpointing cannot keep the cache through which memory.share_prompts"
        " runs each prompt once: add --memory.share_prompts false"
    )


def _warmup_without_end(settings: Settings, run: Facts) -> str | None:
    if not settings.has_critic or settings.critic.warmup < settings.steps:
        return None
    return (
        f"critic.warmup must be below steps ({settings.steps}), or the policy never learns, got"
        f" {settings.critic.warmup}"
    )


def _rewards_and_weights(settings: Settings, run: Facts) -> str | None:
    count, weights = len(settings.reward.functions), settings.reward.weights
    if weights is None or (len(weights) == count and any(weights)):
        return None
    return (
        f"reward.weights must hold a number for each of {count} rewards, not all 0, got"
        f" {list(weights)}"
    )


def _one_reward_apart(settings: Settings, run: Facts) -> str | None:
    functions = settings.reward.functions
    used = sum(weight != 0 for weight in settings.reward.weights or [1.0] * len(functions))
    if "several_rewards" not in run.declared.needs or used > 1:
        return None
    return (
        f"algorithm {settings.algorithm} normalizes each reward separately, so reward.functions"
        f" must name at least 2 that count, with a comma between, got {', '.join(functions)!r};"
        " add one, or use grpo"
    )


def _teacher_that_knows_nothing(settings: Settings, run: Facts) -> str | None:
    if "teacher" not in run.declared.needs or settings.teacher not in (None, "tiny"):
        return None
    return (
        f"algorithm {settings.algorithm} learns from another model, so teacher must be smollm2 or a"
        f" directory that holds config.json, got {settings.teacher or 'none'}"
    )


def _steered_from_zero(settings: Settings, run: Facts) -> str | None:
    reward, answers = settings.reward, settings.batch.prompts * settings.rollout.group_size
    if reward.adaptive is None:
        return None
    if reward.kl_coef == 0:
        return (
            f"reward.adaptive.target {reward.adaptive.target:g} steers reward.kl_coef, which must"
            " be above 0, got 0"
        )
    least = answers * ADAPTIVE_CLIP
    if reward.adaptive.horizon < least:
        return (
            f"reward.adaptive.horizon must be at least {least:g} for rollouts of {answers}"
            f" answers, got {reward.adaptive.horizon:g}"
        )
    return None


def _first_given(group: Group, *names: str) -> str | None:
    """Returns the first of these keys of a group that does not have its default."""
    fields = type(group).model_fields
    return next((n for n in names if getattr(group, n) != fields[n].default), None)


def _limits_of_nothing(settings: Settings, run: Facts) -> str | None:
    reward = settings.reward
    own = [x for x in reward.functions if ":" in x and not x.startswith(("regex:", "stage:"))]
    key = _first_given(reward, "timeout", "workers")
    if own or not run.samples or key is None:
        return None
    return (
        f"reward.{key} is for a function of your own, such as my_reward.py:function, and"
        f" reward.functions {', '.join(reward.functions)} names none: leave it out, got"
        f" {getattr(reward, key):g}"
    )


def _sampling_of_nothing(settings: Settings, run: Facts) -> str | None:
    greedy = run.answers_task and "sampled" not in settings.eval.modes
    key = _first_given(settings.rollout, "temperature", "top_k", "top_p")
    if run.samples or run.supervised or not greedy or key is None:
        return None
    return (
        f"rollout.{key} is for sampled answers, and algorithm {settings.algorithm} with eval.modes"
        f" {', '.join(settings.eval.modes)} samples none: leave it out, got"
        f" {getattr(settings.rollout, key):g}"
    )


def _compared_with_itself(settings: Settings, run: Facts) -> str | None:
    if not run.online or settings.loss.compare != settings.loss.path:
        return None
    return (
        f"loss.compare {settings.loss.compare} is the loss.path of the run, so there is nothing to"
        " compare: leave it out, or use loss.path linear"
    )


def _kl_without_weight(settings: Settings, run: Facts) -> str | None:
    if not run.online or settings.reads_reference:
        return None
    for name in OF_KL:
        given = settings.coefficients.get(name)
        if given is not None and given != settings.declared.defaults.get(name):
            return (
                f"coefficients.{name} is of the KL term, whose coefficients.kl_coef must not be 0:"
                f" give one, or leave {name} out, got {given}"
            )
    return None


def _ordered_bounds(settings: Settings, run: Facts) -> str | None:
    bounds = settings.correction
    low = getattr(bounds, "low", 0.0)
    if bounds is None or low <= bounds.high:
        return None
    return f"correction.low must be at most correction.high {bounds.high:g}, got {low:g}"


def _entropy_without_weight(settings: Settings, run: Facts) -> str | None:
    coef = settings.coefficients.get("entropy_coef", 0.0)
    if not run.online or settings.loss.entropy_over == "loss" or coef != 0:
        return None
    return (
        f"loss.entropy_over {settings.loss.entropy_over} weighs the entropy term, whose"
        " coefficients.entropy_coef must be above 0, got 0"
    )


def _pairs_of_nothing(settings: Settings, run: Facts) -> str | None:
    source, given = settings.pairs.source, settings.data.train
    if not run.judges or (source == DATA and run.file) or source == SAMPLED:
        return None
    if source == DATA:
        return "pairs.source data are the pairs of data.train, which must be given"
    if run.file:
        return f"pairs.source {source} and data.train {given} both name pairs: give one of the two"
    return None


def _two_ways_of_putting_a_prompt(settings: Settings, run: Facts) -> str | None:
    data = settings.data
    for key, value in (("data.chat", data.chat or None), ("data.system", data.system)):
        if run.file and data.template is not None and value is not None:
            return (
                f"data.template makes a text of a prompt and {key} a message: give one of the two"
            )
    if run.file and data.system is not None and data.chat is False:
        return "data.system is a message of a chat template, which data.chat false leaves out"
    return None


def _samples_of_evaluation(settings: Settings, run: Facts) -> str | None:
    own = settings.eval
    if not run.answers_task:
        return None
    if own.samples > 1 and "sampled" not in own.modes:
        return f"eval.samples must be 1 if eval.modes is {', '.join(own.modes)}, got {own.samples}"
    if max(own.pass_at) > own.samples:
        return (
            f"eval.pass_at must be from 1 to eval.samples ({own.samples}), got"
            f" {', '.join(map(str, own.pass_at))}"
        )
    return None


CONTRADICTIONS: tuple[Callable[[Settings, Facts], str | None], ...] = (
    _one_answer,
    _pieces,
    _deviation_of_nothing,
    _one_way_of_training_less,
    _checkpointing_without_cache,
    _warmup_without_end,
    _rewards_and_weights,
    _one_reward_apart,
    _teacher_that_knows_nothing,
    _steered_from_zero,
    _limits_of_nothing,
    _sampling_of_nothing,
    _compared_with_itself,
    _kl_without_weight,
    _ordered_bounds,
    _entropy_without_weight,
    _pairs_of_nothing,
    _two_ways_of_putting_a_prompt,
    _samples_of_evaluation,
)
