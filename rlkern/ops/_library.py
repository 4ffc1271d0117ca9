# SPDX-License-Identifier: Apache-2.0
"""The dispatcher library that every rlkern operation is registered in."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rlkern.backends import implementation

LIBRARY = torch.library.Library("rlkern", "DEF")


def register(schema: str, kernel: Callable, fake: Callable):
    """Defines an operation with one implementation for all devices and returns its overload."""
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rlkern::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.rlkern, name).default


def register_gradient(op, backward: Callable, setup_context: Callable) -> None:
    """Makes an operation differentiable, as torch.library.register_autograd does.

    That one costs twice as much in each call as a small loss: it fills in the schema's defaults,
    of which these operations have none, in a time quadratic in the arguments.
    """
    assert not any(argument.has_default_value() for argument in op._schema.arguments)
    below = torch._C._after_autograd_keyset

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *given):
            *inputs, keyset = given
            with torch._C._AutoDispatchBelowAutograd():
                output = op.redispatch(keyset & below, *inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return *backward(ctx, *grads), None

    def differentiable(keyset, *inputs):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return Gradient.apply(*inputs, keyset)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & below, *inputs)

    name = op.name().split("::")[1].split(".")[0]
    LIBRARY.impl(name, differentiable, "Autograd", with_keyset=True)


def number_tensor(numbers: Sequence[float]) -> Tensor:
    """Returns coefficients as one float64 tensor on the CPU, the form operators take them in.

    torch.compile would compile anew for every value of a float argument.
    """
    if not torch.compiler.is_compiling():
        return torch.tensor(numbers, dtype=torch.float64)
    # Of the ways to make a tensor of numbers, a product alone keeps them out of the guards.
    one = torch.ones((), dtype=torch.float64)
    return torch.stack([one * x for x in numbers])


def graph_numbers(numbers: Sequence[float]) -> Sequence:
    """Returns coefficients of plain PyTorch: themselves, or in a graph what it does not guard."""
    return number_tensor(numbers).unbind() if torch.compiler.is_compiling() else numbers


def bump_version_of_first_argument(op) -> None:
    """Makes a mutating operation bump its first argument's version counter, also when compiled.

    Without it a second use of an overwritten tensor would give silently wrong gradients.
    """
    after = torch._C._after_ADInplaceOrView_keyset

    def bump(keyset, tensor: Tensor, *args):
        torch.autograd.graph.increment_version(tensor)
        return op.redispatch(keyset & after, tensor, *args)

    name = op.name().split("::")[1].split(".")[0]
    LIBRARY.impl(name, bump, "ADInplaceOrView", with_keyset=True)


def refuse_double_backward(stem: str) -> None:
    """Raises inside a backward that is itself being differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{stem}: double backward (create_graph=True) is not supported")


def refuse_double_backward_of(stem: str, x: Tensor) -> Tensor:
    """Returns x, whose gradient then refuses to be differentiated, as that of a kernel does."""
    if x.requires_grad and not torch.compiler.is_compiling():  # AOTAutograd refuses by itself
        x.register_hook(lambda grad: refuse_double_backward(stem))
    return x


# Whether the backward that runs has been told to keep its graph (retain_graph=True); where a torch
# cannot be asked, it may have been.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def scaled_gradient(grad: Tensor, factor: Tensor) -> Tensor:
    """Returns grad · factor in grad's dtype, for a backward that has saved grad.

    In a buffer of its own only where a second backward may come for grad: it is as large as the
    logits, and writing another would take longer than the loss.
    """
    if type(factor) is not Tensor or torch.compiler.is_compiling():
        return (grad * factor).to(grad.dtype)  # traced: inductor fuses this
    if _graph_is_kept():
        return implementation("scaled", grad)(grad, factor)
    implementation("scale_", grad)(grad, factor)
    return grad


def scaled_gradients(grads: Iterable[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    """Returns grad · factor of those that are there."""
    return [None if grad is None else scaled_gradient(grad, factor) for grad in grads]


def upstream_of_scores(grads: Sequence[Tensor | None]) -> list[Tensor | None] | None:
    """Returns the gradients that arrive at (logprob, entropy, lse), or None if none does.

    grads are those of a Scored, and of constants that may come after it. lse = row_max + log_sum,
    and row_max is a constant: the whole gradient of lse arrives through log_sum.
    """
    grad_logprob, grad_entropy, _, grad_log_sum, *_ = grads
    found = [
        None if g is None else g.contiguous() for g in (grad_logprob, grad_entropy, grad_log_sum)
    ]
    return None if all(g is None for g in found) else found
