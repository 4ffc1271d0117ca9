# SPDX-License-Identifier: Apache-2.0
"""What a run checks of its model before the first step: that the sampler, the trainer and the model
itself, over a row alone, give sampled tokens the same log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlkern.runs.device import is_out_of_memory
from rlkern.runs.errors import UserError
from rlkern.trainer.data.chat import Prompt
from rlkern.trainer.models.policy import Policy, token_logprob
from rlkern.trainer.models.ways import Way
from rlkern.trainer.rollout.sampler import Sampling, random_numbers, sample
from rlkern.trainer.rollout.text import Prompts, encode, left_padded
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings

# Mean differences in nats: what rounding is below, and anything else is far above.
_ROUNDING, _ROUNDING_LOW = 1e-3, 0.2
_TOKENS, _GROUP = 4, 2
# What transformers raises where a model does not take what `generate` would give it.
_ERRORS: tuple[type[Exception], ...] = (ArithmeticError, AssertionError, AttributeError)
_ERRORS += (LookupError, RuntimeError, TypeError, ValueError)


def check_model(
    policy: Policy, prompts: Sequence[Prompt], settings: Settings, say: Callable[[str], None]
) -> None:
    """Raises UserError, naming the model's class, unless some sampled tokens have one
    log-probability whoever scores them, and a gradient.

    The model is then run in the first of its ways, such as with a cache, in which they agree; says
    so where that is without one.
    """
    name = type(policy.head.causal).__name__
    ways, refused = [policy.passes.way, Way(False, True), Way(False, False)], []
    for way in dict.fromkeys(ways):
        policy.passes.choose(way)
        why = _disagreement(policy, prompts, settings)
        if why is None:
            if policy.passes.cache_name is None:
                say(
                    f"{name} is sampled without a cache: each token takes a pass over its whole row"
                )
            return
        refused.append(why)
    policy.passes.choose(ways[0])
    raise UserError(f"model {name} {refused[0]}")


def _disagreement(policy: Policy, prompts: Sequence[Prompt], settings: Settings) -> str | None:
    """Returns why a model cannot be trained as it is run, None if it can."""
    try:
        found = differences(policy, prompts, settings)
    except _ERRORS as error:
        if is_out_of_memory(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"cannot be run here: {type(error).__name__}: {first}"
    bound = _ROUNDING_LOW if policy.low_precision else _ROUNDING
    for who, difference in found.items():
        if not difference <= bound:
            return (
                f"cannot be trained exactly: the {who} and the model itself, over one row without"
                f" padding, must agree on the log-probability of a token within {bound} nats, they"
                f" differ by {difference:.3g}"
            )
    return None


def differences(policy: Policy, prompts: Sequence[Prompt], settings: Settings) -> dict[str, float]:
    """Returns by how many nats the sampler and the trainer differ on average from the model over
    rows alone."""
    with torch.no_grad():
        found = _sampled(policy, _two_lengths(policy, prompts), settings)
        alone = _alone(policy, found, settings.rollout.temperature)
    trained = token_logprob(policy, found, settings)
    first = list(policy.parameters().values())[:1]
    if first:  # most of the way back through the model, of which no number is of interest
        torch.autograd.grad(trained.sum(), first, allow_unused=True)
    scores = {"sampler": found.rollout_logprob, "trainer": trained.detach()}
    return {who: (x - alone)[::_GROUP].abs().mean().item() for who, x in scores.items()}


def _two_lengths(policy: Policy, prompts: Sequence[Prompt]) -> Prompts:
    """Returns a long and a short prompt."""
    every = encode(policy, prompts, max_new_tokens=1)
    rows = sorted((row[real].tolist() for row, real in zip(*every)), key=len)
    short, long = rows[0], rows[-1]
    return left_padded(policy, [long, short if len(short) < len(long) else short[-2:]])


def _sampled(policy: Policy, prompts: Prompts, settings: Settings) -> Rows:
    nothing = torch.empty(0, dtype=torch.int64, device=policy.device)
    width = max(1, min(_TOKENS, policy.context - prompts.token.shape[1]))
    rule = Sampling(width, nothing, temperature=settings.rollout.temperature)
    rows = len(prompts.token) * _GROUP
    uniform = None
    if rule.temperature > 0:
        uniform = random_numbers(torch.Generator().manual_seed(0), rows, rule)
    return sample(policy, prompts, rule, group_size=_GROUP, uniform=uniform)


def _alone(policy: Policy, rows: Rows, temperature: float) -> Tensor:
    """Returns the log-probabilities (B, T) by the model's own forward over each prompt's first
    answer, without padding; zeros for the other answers."""
    found = torch.zeros_like(rows.rollout_logprob)
    width = rows.token.shape[1]
    for index in range(0, len(rows.token), _GROUP):
        prompt = rows.prompt[index // _GROUP][rows.prompt_mask[index // _GROUP]]
        row = torch.cat([prompt, rows.token[index]])[None]
        with policy.precision():
            logits = policy.model(input_ids=row, use_cache=False).logits[0, -width - 1 : -1]
        logprob = (logits.float() / (temperature or 1.0)).log_softmax(-1)
        found[index] = logprob.gather(-1, rows.token[index][:, None])[:, 0]
    return found
