# SPDX-License-Identifier: Apache-2.0
"""The dispatcher library that every rlkern operation is registered in."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rlkern.backends import has_memory, implementation

LIBRARY = torch.library.Library("rlkern", "DEF")


class Operation:
    """An operation that is registered with the dispatcher, and called past it where nobody listens.

    A call through the dispatcher packs and unpacks every argument twice, which takes longer than
    the loss of a small batch. Tracers, modes and subclasses of tensors need it; a call of plain
    tensors without any of them runs the same kernel behind the same autograd.Function.
    """

    def __init__(self, overload, kernel: Callable):
        self.overload = overload
        self.kernel = kernel
        self.differentiable: Callable | None = None  # kernel, with a gradient
        self.inputs = 0  # how many of the first arguments have one

    @property
    def name(self) -> str:
        """Its name without the namespace."""
        return self.overload.name().split("::")[1].split(".")[0]

    def __call__(self, *arguments):
        if not nobody_listens() or not _are_plain(arguments):
            return self.overload(*arguments)
        if self.differentiable is not None and _wants_graph(arguments[: self.inputs]):
            return self.differentiable(self.kernel, arguments)
        return self.kernel(*arguments)


# What the dispatcher asks on a thread without modes, transformations and tracers: each adds a key.
_KEYS_OF_NOBODY = torch._C._dispatch_tls_local_include_set().raw_repr()
_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def nobody_listens() -> bool:
    """Returns whether no compiler, mode, transformation or tracer sees what is called here."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._dispatch_tls_local_include_set().raw_repr() != _KEYS_OF_NOBODY
        or torch._C._is_torch_function_mode_enabled()
    )


def _are_plain(arguments: Sequence) -> bool:
    """Whether the tensors among these are of no subclass, and have values."""
    for x in arguments:
        if type(x) not in _PLAIN and isinstance(x, Tensor):
            return False
    return has_memory(arguments[0])


def _wants_graph(inputs: Sequence) -> bool:
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)


def register(schema: str, kernel: Callable, fake: Callable) -> Operation:
    """Defines an operation with one implementation for all devices and returns it."""
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rlkern::{name}", fake, lib=LIBRARY)
    return Operation(getattr(torch.ops.rlkern, name).default, kernel)


def register_gradient(
    op: Operation, backward: Callable, setup_context: Callable, inputs: int = 1
) -> None:
    """Makes an operation differentiable in its first arguments, so many as inputs says; backward
    returns a gradient of each of them.

    torch.library.register_autograd costs twice as much in each call as a small loss: it fills in
    the schema's defaults, of which these operations have none, in a time quadratic in the
    arguments.
    """
    overload = op.overload
    assert not any(argument.has_default_value() for argument in overload._schema.arguments)
    below = torch._C._after_autograd_keyset

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, kernel, arguments, *differentiable):
            output = kernel(*arguments)
            setup_context(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return None, None, *backward(ctx, *grads)

    def differentiable(kernel: Callable, arguments: Sequence):
        # The others behind one tuple: autograd looks at each argument that it is given.
        return Gradient.apply(kernel, arguments, *arguments[:inputs])

    def dispatched(keyset, *arguments):
        def redispatch(*arguments):
            with torch._C._AutoDispatchBelowAutograd():
                return overload.redispatch(keyset & below, *arguments)

        if _wants_graph(arguments[:inputs]):
            return differentiable(redispatch, arguments)
        return redispatch(*arguments)

    Gradient.__name__ = Gradient.__qualname__ = f"rlkern::{op.name}"  # as profilers show it
    op.differentiable, op.inputs = differentiable, inputs
    LIBRARY.impl(op.name, dispatched, "Autograd", with_keyset=True)


# A training has a few of them, and making one takes as long as the loss of a tiny batch. Nobody
# writes to it.
@lru_cache(maxsize=64)
def _remembered(numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def number_tensor(numbers: Sequence[float]) -> Tensor:
    """Returns coefficients as one float64 tensor on the CPU, the form operators take them in.

    torch.compile would compile anew for every value of a float argument.
    """
    if nobody_listens():
        return _remembered(tuple(numbers))
    if not torch.compiler.is_compiling():
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")
    # Of the ways to make a tensor of numbers, a product alone keeps them out of the guards.
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return torch.stack([one * x for x in numbers])


def graph_numbers(numbers: Sequence[float]) -> Sequence:
    """Returns coefficients of plain PyTorch: themselves, or in a graph what it does not guard."""
    return number_tensor(numbers).unbind() if torch.compiler.is_compiling() else numbers


def bump_version_of_first_argument(op: Operation) -> None:
    """Makes a mutating operation bump its first argument's version counter, also when compiled.

    Without it a second use of an overwritten tensor would give silently wrong gradients.
    """
    after = torch._C._after_ADInplaceOrView_keyset
    overload, kernel = op.overload, op.kernel

    def bump(keyset, tensor: Tensor, *args):
        torch.autograd.graph.increment_version(tensor)
        return overload.redispatch(keyset & after, tensor, *args)

    def direct(tensor: Tensor, *args):
        torch.autograd.graph.increment_version(tensor)
        return kernel(tensor, *args)

    op.kernel = direct
    LIBRARY.impl(op.name, bump, "ADInplaceOrView", with_keyset=True)


def refuse_double_backward(stem: str) -> None:
    """Raises inside a backward that is itself being differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{stem}: double backward (create_graph=True) is not supported")


def saved_tensors(ctx, stem: str) -> tuple:
    """Returns what a forward has saved; Raises RuntimeError, in words of rlkern, if it was written
    over since."""
    if torch.compiler.is_compiling():
        return ctx.saved_tensors
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            f"{stem}: the logits were overwritten after the forward pass, by a backward with"
            f" inplace=True or by your own code; a second backward needs inplace=False: {error}"
        ) from error


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
