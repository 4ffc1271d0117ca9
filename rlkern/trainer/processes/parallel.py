# SPDX-License-Identifier: Apache-2.0
"""Forward and backward over the processes of a run: DDP, where each holds all weights, and FSDP2,
where each holds its part of them.

The weights of a loss are made from the whole batch, so gradients are added over processes, never
averaged: the gradient of a run does not depend on how many share it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from rlkern.runs.errors import UserError
from rlkern.trainer.processes.world import World
from rlkern.trainer.settings import Settings


def check_parallel(settings: Settings, world: World) -> None:
    """Raises UserError for settings that this many processes cannot follow."""
    if world.size == 1:
        return
    if settings.parallel == "fsdp2" and settings.memory.share_prompts:
        raise UserError(
            "memory.share_prompts must be false with parallel fsdp2, got true: a layer's weights"
            " are given back between a prompt and its answers, and their gradients would be lost"
        )
    shared = {"batch.prompts": settings.batch.prompts, "eval.items": settings.eval.items}
    for key, count in shared.items():
        if count < world.size:
            raise UserError(
                f"{key} must be at least the number of processes, got {count} for {world.size};"
                " start fewer"
            )


def spread(module: nn.Module, world: World, way: str, *, some_unused: bool = False) -> nn.Module:
    """Returns the module whose forward and backward are done by all processes together.

    way is ddp or fsdp2. With fsdp2 it is the module itself, whose parameters then are DTensors;
    make the optimizer after this. Only its own forward, or `gathered`, has whole weights.
    some_unused says that a step may leave weights without gradients.
    """
    if world.size == 1:
        return module
    if way == "fsdp2":
        return sharded(module, world)
    return _replicated(module, some_unused=some_unused)


def _replicated(module: nn.Module, *, some_unused: bool) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    found = DistributedDataParallel(
        module, find_unused_parameters=some_unused, gradient_as_bucket_view=True
    )
    found.register_comm_hook(None, _added)
    return found


def _added(_, bucket):
    """Returns the sum of a bucket of gradients over processes. DDP refuses other annotations."""
    import torch.distributed as dist

    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def sharded(module: Any, world: World) -> nn.Module:
    """Returns the module with its weights spread over processes by FSDP2, layer by layer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh = init_device_mesh(world.device.type, (world.size,))
    layers = [x for x in module.modules() if isinstance(x, GradientCheckpointingLayer)]
    part: Any
    for part in (*layers, module):
        fully_shard(part, mesh=mesh)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other kind
    # The first forward decides which module is the outermost one: before a layer's own does.
    module.begin = lambda: None
    register_fsdp_forward_method(module, "begin")
    module.begin()
    module.reshard()
    return module


def _shards(module: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [x for x in module.modules() if isinstance(x, FSDPModule)]


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Holds whole weights in every process inside the block, where each may then run the models
    as often as it likes: for sampling, scoring and evaluation, without gradients."""
    shards = _shards(module) if is_sharded(module) else []
    for part in shards:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in shards:
            part.set_reshard_after_forward(part is not module, recurse=False)
            part.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Returns True for a module whose weights are spread over processes."""
    return any(hasattr(p, "full_tensor") for p in module.parameters())


def accumulating(module: nn.Module, *, last: bool) -> contextlib.AbstractContextManager:
    """Returns the context of one micro-batch, forward and backward: DDP adds gradients over
    processes only in the last one. FSDP2 does in each: a whole gradient would not fit."""
    if last or not hasattr(module, "no_sync"):
        return contextlib.nullcontext()
    return cast(Any, module).no_sync()


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a tensor that may be spread over processes; each process has to ask for it."""
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own(tensor: Tensor) -> Tensor:
    """Returns this process's part of a tensor that may be spread over processes."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Returns a whole tensor spread over processes as the parameter is."""
    if not hasattr(parameter, "full_tensor") or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    spread_one = cast(Any, parameter)
    return distribute_tensor(tensor, spread_one.device_mesh, spread_one.placements)


def whole_state(model: nn.Module) -> dict[str, Tensor] | None:
    """Returns the weights by name as a file holds them, each process having to ask; None where they
    are not spread and the model itself knows them."""
    if not is_sharded(model):
        return None
    shared: dict[int, Tensor] = {}  # tied weights stay one tensor
    names = dict(model.named_parameters(remove_duplicate=False))
    state = dict(model.state_dict())
    for name, parameter in names.items():
        if id(parameter) not in shared:
            shared[id(parameter)] = whole(parameter.detach())
        if name in state:
            state[name] = shared[id(parameter)]
    return state
