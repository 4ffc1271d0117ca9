# SPDX-License-Identifier: Apache-2.0
"""Arguments that are refused together, though each alone would be fine."""

import pytest
import torch
from backend_helpers import CHOSEN, served_by
from call_helpers import NAN, B, T, V, good, one, policy_loss, token_objective
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import rlkern
from rlkern.backends import _load, _resolve


def test_a_term_without_its_input_is_refused():
    with pytest.raises(ValueError, match="policy_loss: kl_coef is 0.1, so ref_logprob must be"):
        policy_loss(kl_coef=0.1, ref_logprob=None)
    with pytest.raises(ValueError, match="token_objective: entropy_coef is 0.1, so entropy must"):
        token_objective(entropy_coef=0.1)


def flat():
    return {name: x.flatten(0, 1) for name, x in good().items()}


def test_a_flat_mask_without_weights_is_refused_where_sequences_are_averaged():
    with pytest.raises(ValueError, match=r"averages over sequences, so mask must be \(B, T\)"):
        policy_loss(**flat(), algorithm="grpo")


@pytest.mark.parametrize("operation", (policy_loss, token_objective))
def test_flat_rows_without_bounds_are_refused_where_the_ratio_is_a_sequences(operation):
    rows = flat()
    rows["weight"] = torch.ones(B * T)
    if operation is token_objective:
        del rows["logits"], rows["token"]
        rows["logprob"] = rows["ref_logprob"]
    with pytest.raises(ValueError, match=r"gspo compares whole sequences, so rows must be \(B, T"):
        operation(**rows, algorithm="gspo")


@pytest.mark.parametrize(
    "bounds", ([0, 3, 5], [1, 6], [0, 4, 3, 6], [0, 7], [], [6], [[0, 6]], [0, 6, 6, 3])
)
def test_bounds_that_do_not_cover_the_rows_are_refused_and_nothing_is_written(bounds):
    rows = flat()
    leaf = rows.pop("logits").clone().requires_grad_()
    logits, before = leaf * 1, leaf.detach().clone()
    cu_seqlens = torch.tensor(bounds, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^policy_loss: cu_seqlens must .*, got .*") as caught:
        rlkern.policy_loss(logits, **rows, cu_seqlens=cu_seqlens, inplace=True)
    assert logits.equal(before) and logits._version == 0 and "\n" not in str(caught.value)


def test_an_advantage_for_another_number_of_sequences_is_refused():
    rows, bounds = flat(), torch.tensor([0, 2, 6])
    policy_loss(**{**rows, "advantage": torch.ones(2)}, cu_seqlens=bounds)
    with pytest.raises(ValueError, match=r"must be \(6,\), \(2,\) or \(2, 1\), got \(3,\)"):
        policy_loss(**{**rows, "advantage": torch.ones(3)}, cu_seqlens=bounds)


def test_logits_of_four_dimensions_that_are_no_grid_are_refused():
    logits = torch.zeros(2, 3, 4, V)[:, :, :2]
    with pytest.raises(ValueError, match="more than three dimensions must be contiguous, got"):
        rlkern.token_logprob(logits, torch.zeros(2, 3, 2, dtype=torch.int64))


def test_vectors_of_metrics_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"metrics_dict: metrics must be \(15,\), got \(3,\)"):
        rlkern.metrics_dict(torch.zeros(3))
    with pytest.raises(ValueError, match="merge_metrics: metrics must be a list of vectors, got"):
        rlkern.merge_metrics([])


def test_a_backend_that_is_unknown_or_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="name must be one of triton, .*cpu, eager, .*got 'numpy'"):
        with rlkern.use_backend("numpy"):
            pass
    native = _load("cpu")[1] is None
    with pytest.raises(rlkern.BackendUnavailable, match="'cpu' cannot serve"):
        if native:
            _resolve("cpu", "policy_loss", "cuda", torch.float32)
        with rlkern.use_backend("cpu"):
            pass
    with rlkern.use_backend("eager"):
        assert rlkern.backend_name("policy_loss") == "eager"


def test_values_are_not_looked_at_unless_asked_for(monkeypatch):
    monkeypatch.setenv("RLKERN_CHECK_VALUES", "0")
    assert policy_loss(ref_logprob=NAN * one, kl_coef=0.1).loss.isnan()
    rows = {name: x.to("meta") for name, x in good().items()}
    assert rlkern.policy_loss(**rows).loss.shape == ()


@pytest.mark.skipif("cpu" not in CHOSEN, reason="the C++ extension is not built")
@pytest.mark.parametrize("token", [-100, 7, 2**40])
@pytest.mark.parametrize("function", ["policy_loss", "token_logprob"])
def test_a_token_outside_the_vocabulary_is_refused_by_the_cpu_kernels_too(
    function, token, monkeypatch
):
    monkeypatch.delenv("RLKERN_CHECK_VALUES")
    logits = torch.zeros(2, 3, 7)
    tokens = torch.full((2, 3), token)
    mask = torch.ones(2, 3, dtype=torch.bool)
    rest = (torch.ones(2), mask) if function == "policy_loss" else ()
    with (
        rlkern.use_backend("cpu"),
        pytest.raises(ValueError, match=f"token must be .* got {token}"),
    ):
        getattr(rlkern, function)(logits, tokens, *rest)


@pytest.mark.parametrize("backend", CHOSEN)
def test_a_group_that_agrees_has_no_advantage_whatever_eps_is(backend):
    reward, group = torch.full((7,), 0.7), torch.zeros(7, dtype=torch.long)
    with served_by(backend):
        for eps in (0.0, 1e-6):
            assert not rlkern.group_advantage(reward, group, eps=eps).any()


def test_a_tensor_that_is_spread_over_ranks_is_refused_by_every_op(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        spread = distribute_tensor(torch.zeros(1, 2), mesh, [Replicate()])
        logits = distribute_tensor(torch.zeros(1, 2, 3), mesh, [Shard(2)])
        row, token, mask = torch.zeros(1, 2), torch.zeros(1, 2).long(), torch.ones(1, 2).bool()
        calls = {
            "logits": lambda: rlkern.policy_loss(logits, token, row, mask),
            "advantage": lambda: rlkern.token_objective(row, spread, mask),
            "value": lambda: rlkern.gae(row, spread, mask),
            "reward": lambda: rlkern.group_advantage(spread[0], torch.tensor([0, 0])),
        }
        for name, call in calls.items():
            with pytest.raises(TypeError, match=f"{name}.* must be a plain tensor, got a DTensor"):
                call()
    finally:
        torch.distributed.destroy_process_group()
