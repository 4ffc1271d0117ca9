# SPDX-License-Identifier: Apache-2.0
"""fused_head over models whose data or weights are spread over processes."""

import pytest
import torch
from distributed_helpers import spawn
from fused_head_helpers import batch_of, model_of, scores_and_gradients
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import rlkern


def loss_of(model, part):
    inputs, token, mask = batch_of()
    inputs = {name: x[part] for name, x in inputs.items()}
    out = model(**inputs, token=token[part], mask=mask[part], temperature=0.8)
    return out.logprob.sum() + 0.3 * out.entropy.square().sum()


def trained(model, rank):
    """Returns what the gradients of all ranks come to, whole."""
    with rlkern.fused_head(model):
        loss_of(model, slice(rank, rank + 1)).backward()
    grads = {n.removeprefix("module."): x.grad for n, x in model.named_parameters()}
    return {n: x.full_tensor() if isinstance(x, DTensor) else x for n, x in grads.items()}


def refusal(function) -> str:
    try:
        function()
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return "nothing was raised"


def sharded(mesh, *, head_alone: bool):
    """Returns a model split by FSDP2: its layers, and the rest with the root."""
    model = model_of("Llama")
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if head_alone:
        fully_shard(model.lm_head, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def in_every_process(rank: int) -> dict:
    torch.use_deterministic_algorithms(False)
    mesh = init_device_mesh("cpu", (2,))
    table = distribute_tensor(torch.randn(6, 4), mesh, [Shard(0)])
    plain = torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    return {
        "DDP": trained(DistributedDataParallel(model_of("Llama")), rank),
        "FSDP2": trained(sharded(mesh, head_alone=False), rank),
        "head alone": refusal(lambda: trained(sharded(mesh, head_alone=True), rank)),
        "DTensor": refusal(lambda: rlkern.linear_token_logprob(plain[0], table, plain[1])),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """Returns what each of two ranks found, from one start of processes."""
    return spawn(in_every_process, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("wrapper", ("DDP", "FSDP2"))
def test_the_gradient_of_two_ranks_is_the_mean_of_theirs(found, wrapper):
    whole = scores_and_gradients(model_of("Llama"), False)
    for rank in found:
        assert rank[wrapper].keys() == whole.keys() - {"logprob", "entropy"}
        for name, grad in rank[wrapper].items():
            torch.testing.assert_close(2 * grad, whole[name])


def test_a_head_that_is_spread_over_ranks_is_refused_in_a_sentence(found):
    for rank in found:
        assert "weight must be a plain tensor, got a DTensor (6, 4) spread" in rank["DTensor"]
        assert "weight must be a plain tensor, got a DTensor (53, 16)" in rank["head alone"]
