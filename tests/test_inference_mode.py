# SPDX-License-Identifier: Apache-2.0
"""Losses are the same inside torch.inference_mode, and of inputs that were made in it."""

import pytest
import torch
from batch_helpers import BACKENDS

import rlkern

B, T, V, H = 2, 4, 10, 6


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "logits": drawn(B, T, V), "hidden": drawn(B, T, H), "head": drawn(V, H),
        "token": torch.randint(V, (B, T), generator=generator), "advantage": drawn(B),
        "mask": torch.arange(T) < torch.tensor([[T], [2]]), "old": drawn(B, T) - 2.0,
        "ref": drawn(B, T) - 2.0, "target": drawn(B, T), "next_q": drawn(T, V),
        "done": torch.tensor([False, True, False, False]),
    }  # fmt: skip


def policy(x, **more):
    return rlkern.policy_loss(
        x["logits"], x["token"], x["advantage"], x["mask"], algorithm="grpo",
        old_logprob=x["old"], ref_logprob=x["ref"], kl_coef=0.1, **more,
    )  # fmt: skip


def packed(x):
    own = (x["logits"].flatten(0, 1), x["token"].flatten(), x["target"].flatten())
    mask, ends = x["mask"].flatten(), torch.tensor([0, 3, B * T])
    return rlkern.policy_loss(
        *own, mask, cu_seqlens=ends, algorithm="gspo", old_logprob=x["old"].flatten()
    )


def linear(x):
    own = (x["hidden"], x["head"], x["token"], x["advantage"], x["mask"])
    return rlkern.linear_policy_loss(*own, algorithm="grpo")


def objective(x):
    more = {"algorithm": "grpo", "ref_logprob": x["ref"], "kl_coef": 0.1}
    return rlkern.token_objective(x["old"], x["advantage"], x["mask"], **more)


def value(x):
    return rlkern.value_loss(x["old"], x["ref"], x["target"], x["mask"])


def temporal_difference(x):
    own = (x["logits"][0], x["token"][0], x["target"][0], x["done"], x["next_q"])
    return rlkern.td_loss(*own, discount=0.9)


LOSSES = (policy, packed, linear, objective, value, temporal_difference)


def numbers(out) -> list[float]:
    return [out.loss.item(), *out.metrics.flatten().tolist()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("where", ["inside", "made inside", "both"])
def test_inference_mode_changes_no_number(backend, loss, where):
    with rlkern.use_backend(backend):
        with torch.no_grad():
            expected = numbers(loss(inputs()))
        with torch.inference_mode(where != "inside"):
            given = inputs()
        with torch.inference_mode(where != "made inside"):
            found = numbers(loss(given))
    assert found == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_made_in_inference_mode_serves_a_gradient(backend, loss):
    """As a trainer has it whose rollout, advantages and reference ran in inference mode."""

    def gradients(inference: bool) -> list[torch.Tensor]:
        with torch.inference_mode(inference):
            given = inputs()
        own = ("logits", "hidden", "head")
        if loss in (objective, value):
            own = ("old",)
        leaves = [given[key].clone().requires_grad_() for key in own]
        given.update(zip(own, leaves))
        with rlkern.use_backend(backend):
            made = loss(given).loss
        return torch.autograd.grad(made, leaves, allow_unused=True)

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(found, expected)
