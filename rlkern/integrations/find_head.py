# SPDX-License-Identifier: Apache-2.0
"""Finds the head of a language model, and measures that the kernels compute what the model does."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rlkern.integrations.head import (
    Caught,
    HeadOf,
    as_it_counts,
    forward_of,
    shaped,
    text_config,
    weights_of,
)
from rlkern.ops.linear_token_logprob import linear_token_logprob

# Of the logits at which a head is compared with the kernel, large enough for a softcap to show.
_SIZE = 3.0
# Of PEFT: runs the model twice, the first time for its scalings; calls a forward that it keeps.
_OWN_FORWARD = ("XLoraModel", "AdaptionPromptModel")


def _inner(model: Any) -> Any:
    """Returns the model inside DDP and torch.compile."""
    for name in ("module", "_orig_mod"):
        if hasattr(model, name):
            return _inner(getattr(model, name))
    return model


def _causal(model: Any) -> Any:
    """Returns the module that owns the head, inside what adapts it."""
    if hasattr(model, "get_base_model"):  # PEFT
        _check_adapters(model)
        model = model.get_base_model()
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise TypeError(
            "fused_head: model must be a causal language model of transformers with a head, "
            f"got {type(model).__name__}"
        )
    return model


def _check_adapters(model: Any) -> None:
    """Raises ValueError for adapters that are more than layers inside the model."""
    for name, config in model.peft_config.items():
        if config.is_prompt_learning or type(model.base_model).__name__ in _OWN_FORWARD:
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise ValueError(
                "fused_head: adapters must be layers inside the model, got "
                f"{name!r} of kind {kind}, which runs the model with inputs of its own"
            )


_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_SCALES = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling", "logits_divider")


def _scales(config: Any) -> Iterator[tuple[float, float | None]]:
    """Yields the (logit_scale, softcap) that configurations of models name, likeliest first."""

    def given(names: tuple[str, ...]) -> list[float]:
        return [float(x) for x in (getattr(config, name, None) for name in names) if x]

    scales = [*given(_SCALES), *(1.0 / x for x in given(_DIVISORS))]
    for scale in (*scales, 1.0):
        yield from ((scale, softcap) for softcap in (*given(_SOFTCAPS), None))


class _Look(NamedTuple):
    """What a model made of random hidden states (1, n, H) that stood in for its own."""

    states: Tensor
    bare: Tensor  # of the head alone
    logits: Tensor  # of the model, which ended in the graph that leads back to states


def _look(model: Any, head: Any, size: float) -> _Look:
    """Returns what the last lines of a model do; the rest of it runs without a graph."""
    weight, seen = weights_of(head).weight, list[Tensor]()
    token = torch.arange(1, 4, device=weight.device)[None] % weight.shape[0]
    with forward_of(head, Caught(head.forward)) as caught:
        states, _ = caught.run(model, input_ids=token, use_cache=False)
    if states is None or states.shape != (1, 3, weight.shape[1]):
        raise ValueError(
            f"its head must be given one hidden state of {weight.shape[1]} numbers for each token, "
            f"got {None if states is None else tuple(states.shape)} for {tuple(token.shape)}"
        )
    own = head.forward

    def compared(_: Tensor) -> Tensor:
        drawn = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
        drawn = drawn.to(weight.device, weight.dtype)  # a head may be in another one than the rest
        drawn = drawn * (size / own(drawn).square().mean().sqrt().clamp(min=1e-6))
        torch.set_grad_enabled(True)  # until the model's forward ends, outside which it is not
        drawn = drawn.requires_grad_()
        seen.extend((drawn, own(drawn)))
        return seen[1]

    with forward_of(head, compared):
        logits = model(input_ids=token, use_cache=False).logits
    if not (seen[1].isfinite().all() and logits.isfinite().all()):
        broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
        raise ValueError(
            "its logits must be finite for finite hidden states, got NaN or infinity"
            + (f": the weight {broken[0]} holds some" if broken else "")
        )
    return _Look(seen[0], seen[1].detach(), logits)


@contextlib.contextmanager
def _quietly(model: nn.Module) -> Iterator[None]:
    """Holds the model in evaluation, without a graph, inside the with block."""
    training = [x for x in model.modules() if x.training]
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _leaves(output: Tensor) -> dict[int, Tensor]:
    """Returns the tensors that an output's graph ends in, by id."""
    found, todo, seen = {}, [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        todo += [next_node for next_node, _ in node.next_functions]
    return found


def _scores(logits: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    logprob = logits.float().log_softmax(-1)
    return logprob.gather(-1, token[..., None])[..., 0], -(logprob.exp() * logprob).sum(-1)


def _near(got: Tensor | None, expected: Tensor | None) -> bool:
    """Returns whether two tensors are equal but for the rounding of their dtype."""
    if got is None or expected is None:
        return got is expected
    bound = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 0.1
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm()) <= bound * (float(expected.norm()) + 1e-4)


def _compared(found: HeadOf, look: _Look) -> None:
    """Raises ValueError unless log-probs, entropy and the gradient of everything behind them that
    trains are those of the model."""
    token = torch.arange(3, device=look.states.device)[None] % look.logits.shape[-1]
    own = _scores(look.logits, token)
    with torch.enable_grad():
        head = found.parameters()
        fused = linear_token_logprob(look.states, head.pop("weight"), token, **head)
    bound = look.logits.dtype
    for got, expected in zip(fused[:2], own):
        if not _near(got, expected.to(bound)):
            raise ValueError("its log-probs and entropy must be those of its head, got others")
    # The model's own backward comes last: FSDP2 gives the weights back after it.
    sums = [(a + 0.3 * b).sum() for a, b in (fused[:2], own)]
    wanted = list({**_leaves(sums[0]), **_leaves(sums[1])}.values())
    pairs = zip(*(torch.autograd.grad(x, wanted, allow_unused=True) for x in sums), wanted)
    for got, expected, leaf in pairs:
        if not _near(got, expected):
            raise ValueError(
                "the gradient of every weight behind its hidden states must be that of its head, "
                f"got another for one of shape {tuple(leaf.shape)}"
            )


_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, float, float | None]] = WeakKeyDictionary()


def find_head(model: nn.Module) -> HeadOf:
    """Returns where a model's logits come from; raises where that cannot be made sure of.

    Found by its output embeddings, not by a list of names. Random hidden states stand in for those
    that the head is given, and what the model makes of them must be what a head, a scale and a
    softcap make: log-probs, entropy, and the gradient of every weight that they lead back to. A
    model is looked at once for each state of its head.
    """
    inner = _inner(model)
    causal = _causal(inner)
    head, name = causal.get_output_embeddings(), type(causal).__name__
    state = as_it_counts(head)
    known = _KNOWN.get(causal)
    if known is not None and known[0] == state:
        return HeadOf(inner, causal, head, *known[1:])
    candidates = list(_scales(text_config(causal)))
    scale, softcap = candidates[0]
    with _quietly(inner):
        try:
            look = _look(inner, head, max(_SIZE, (softcap or 0) / 2) / scale)
        except ValueError as error:
            raise ValueError(f"fused_head: {name}: {error}") from error
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise TypeError(
                f"fused_head: {name} must score tokens from input_ids alone, and raised "
                f"{type(error).__name__}: {first}"
            ) from error
        for scale, softcap in candidates:
            z = shaped(look.bare.double(), scale, softcap)
            if z.shape != look.logits.shape or not torch.allclose(
                look.logits.double(), z, rtol=0.02, atol=0.02 * float(z.abs().mean())
            ):
                continue
            found = HeadOf(inner, causal, head, scale, softcap)
            try:
                _compared(found, look)
            except ValueError as error:
                raise ValueError(f"fused_head: {name}: {error}") from error
            _KNOWN[causal] = (state, scale, softcap)
            return found
    raise ValueError(
        f"fused_head: the logits of {name} must be those of its head, scaled and softcapped as its "
        "configuration says, got others"
    )
