# SPDX-License-Identifier: Apache-2.0
"""What is timed on a GPU: groups of rows, each with the inputs that it alone keeps in memory."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

import rlkern
from benchmarks import peers
from rlkern.testing import baselines
from rlkern.testing.timed_inputs import GRPO, GSPO, SOFTCAP, Inputs, LinearInputs

Call = Callable[[], object]


class Row(NamedTuple):
    """A call, and what it cannot do without: bytes through the memory, operations of matrices."""

    call: Call
    bytes: float = 0
    flops: float = 0


class Group(NamedTuple):
    """Rows of one shape, and what is done before each call: nothing of its time is counted."""

    shape: tuple[int, ...]
    rows: dict[str, Row]
    setup: Call = lambda: None


class Sizes(NamedTuple):
    """The shapes of all groups."""

    logits: tuple[int, int] = (8192, 151936)
    scan: tuple[int, int] = (8192, 2048)
    linear: tuple[tuple[int, int, int], ...] = ((4096, 4096, 131072), (8192, 4096, 128256))
    matmul: int = 8192


GOALS = Sizes()
SMALL = Sizes((64, 1000), (8, 64), ((16, 16, 130),), 64)


def served_by(backend: str, call: Call) -> Call:
    """Returns the call, made with a backend that is not the chosen one."""

    def run() -> object:
        with rlkern.use_backend(backend):
            return call()

    return run


def logprob_forward_backward(inputs: Inputs) -> None:
    """Runs token_logprob as an autograd operation, its gradient over the logits."""
    out = rlkern.token_logprob(inputs.non_leaf(), inputs.token, inplace=True)
    out.logprob.backward(inputs.advantage)


def our_rows(inputs: Inputs) -> dict[str, Row]:
    """Returns rlkern's rows over logits, with the passes that each cannot do without."""
    size = inputs.source.numel() * inputs.source.element_size()
    fused, logits, token = partial(inputs.fused, True), inputs.logits, inputs.token
    return {
        "rlkern_logprob_and_entropy": Row(lambda: rlkern.token_logprob(logits, token), size),
        "rlkern_logprob_forward_backward": Row(partial(logprob_forward_backward, inputs), 3 * size),
        "rlkern_policy_loss_alone": Row(lambda: inputs.loss(logits), size),
        "rlkern_policy_loss_in_place": Row(fused, 2 * size),
        "rlkern_policy_loss_fresh_buffer": Row(partial(inputs.fused, False), 2 * size),
        "rlkern_gspo_in_place": Row(partial(fused, **GSPO), 3 * size),
        "rlkern_kept_set_in_place": Row(partial(fused, keep=inputs.keep), size),
        "rlkern_softcap_in_place": Row(partial(fused, softcap=SOFTCAP), 2 * size),
    }


def cuda_rows(inputs: Inputs) -> dict[str, Row]:
    """Returns the rows that the cuda backend serves, where it can: asked for by name."""
    names = (
        "logprob_and_entropy", "logprob_forward_backward", "policy_loss_alone",
        "policy_loss_in_place", "softcap_in_place",
    )  # fmt: skip
    ours = our_rows(inputs)
    rows = {name: ours[f"rlkern_{name}"] for name in names}
    return {f"cuda_{n}": row._replace(call=served_by("cuda", row.call)) for n, row in rows.items()}


def cuda_serves() -> bool:
    """Returns whether the cuda backend can serve here; says why where it cannot."""
    try:
        with rlkern.use_backend("cuda"):
            return torch.cuda.is_available()
    except rlkern.backends.BackendUnavailable as error:
        print(error)
        return False


def logits_group(sizes: Sizes, device: str, rows: Callable[[Inputs], dict[str, Row]]) -> Group:
    """Returns rows over fresh logits."""
    inputs = Inputs(*sizes.logits, torch.bfloat16, device)
    return Group(sizes.logits, rows(inputs), inputs.reset)


def ceilings(sizes: Sizes, device: str) -> Group:
    """Returns a copy of logits and a matrix product: what memory and matrix units give here."""
    source = torch.randn(*sizes.logits, device=device).bfloat16()
    target = torch.empty_like(source)
    a, b = (torch.randn(sizes.matmul, sizes.matmul, device=device).bfloat16() for _ in range(2))
    moved = 2 * source.numel() * source.element_size()
    return Group(
        sizes.logits,
        {
            "copy_of_the_logits": Row(lambda: target.copy_(source), moved),
            "matmul": Row(lambda: a @ b, flops=2 * sizes.matmul**3),
        },
    )


def scans(sizes: Sizes, device: str) -> Group:
    """Returns GAE and the plain scan by rlkern, and GAE by the reference's doubling steps."""
    shape = sizes.scan
    reward, value = (torch.randn(*shape, device=device) for _ in range(2))
    mask, decay = torch.ones_like(reward, dtype=torch.bool), torch.full_like(reward, 0.95)
    gae = partial(rlkern.gae, reward, value, mask)
    steps = reward.numel()
    rows = {
        "rlkern_gae": Row(gae, 17 * steps),
        "rlkern_reverse_scan": Row(lambda: rlkern.reverse_scan(reward, decay), 12 * steps),
        "eager_gae": Row(served_by("eager", gae), 17 * steps),
    }
    return Group(shape, rows)


def linear_rows(inputs: LinearInputs) -> dict[str, Row]:
    """Returns the loss from hidden states and a head, and its three matrix products alone."""
    hidden, head = inputs.hidden, inputs.head
    options = {"old_logprob": inputs.old, "ref_logprob": inputs.ref, "weight": inputs.weight}

    def loss() -> None:
        given = (hidden, head, inputs.token, inputs.advantage, inputs.mask)
        out = rlkern.linear_policy_loss(*given, **options, **GRPO)
        torch.autograd.grad(out.loss, [hidden, head])

    def products() -> None:
        with torch.no_grad():
            rows = hidden.view(-1, hidden.shape[-1])
            logits = rows @ head.T
            logits @ head
            logits.T @ rows

    return {
        "rlkern_linear_policy_loss": Row(loss, flops=inputs.flops),
        "three_products": Row(products, flops=inputs.flops),
    }


def linear_peers(inputs: LinearInputs) -> dict[str, Row]:
    """Returns the peers' losses from hidden states and a head."""
    found, absent = peers.linear_rows(inputs)
    for name, why in absent.items():
        print(f"{name:<36}{why}")
    return {name: Row(call, flops=inputs.flops) for name, (call, _) in found.items()}


def linear(
    shape: tuple[int, int, int], device: str, rows: Callable[[LinearInputs], dict[str, Row]]
) -> Group:
    """Returns rows over hidden states and a head."""
    return Group(shape, rows(LinearInputs(*shape, device)))


def scaling(sizes: Sizes, device: str) -> Group:
    """Returns the gradient of a head times a factor, in place and in a buffer of its own."""
    _, h, v = sizes.linear[0]
    x, factor = torch.randn(v, h, device=device).bfloat16(), torch.full((), 0.999, device=device)
    scale_, scaled = (rlkern.backends.implementation(n, x) for n in ("scale_", "scaled"))
    moved = 2 * x.numel() * x.element_size()
    rows = {
        "rlkern_scale_in_place": Row(lambda: scale_(x, factor), moved),
        "rlkern_scale_fresh_buffer": Row(lambda: scaled(x, factor), moved),
    }
    return Group((v, h), rows)


def other_rows(inputs: Inputs, compiler: str) -> dict[str, Row]:
    """Returns eager PyTorch's rows, torch.compile's, and those of the peers that are installed."""
    size = inputs.source.numel() * inputs.source.element_size()
    grpo, gspo = baselines.eager_grpo_loss, baselines.eager_gspo_loss
    score = baselines.eager_logprob_and_entropy
    compiled = partial(torch.compile, backend=compiler)
    found = {}
    for name, wrap in {"eager": lambda f: f, "compile": compiled}.items():
        found |= {
            f"{name}_logprob_and_entropy": Row(
                partial(wrap(score), inputs.source, inputs.token), size),
            f"{name}_policy_loss": Row(partial(inputs.other, wrap(grpo)), 2 * size),
            f"{name}_gspo": Row(partial(inputs.other, wrap(gspo)), 3 * size),
        }  # fmt: skip
    kept, capped = baselines.eager_kept_set_loss, baselines.eager_softcap_loss
    found["eager_kept_set"] = Row(partial(inputs.other, kept, inputs.keep), size)
    found["eager_softcap"] = Row(partial(inputs.other, capped, SOFTCAP), 2 * size)
    theirs, absent = peers.rows(inputs)
    for name, why in absent.items():
        print(f"{name:<36}{why}")
    return found | {name: Row(call, passes * size) for name, (call, passes) in theirs.items()}


def groups(part: int, sizes: Sizes, device: str, compiler: str) -> Iterator[Callable[[], Group]]:
    """Yields what makes each group of a part: 1 is rlkern and its ceilings, 2 everybody else."""
    if part == 2:
        others = partial(other_rows, compiler=compiler)
        yield partial(logits_group, sizes, device, others)
        for shape in sizes.linear:
            yield partial(linear, shape, device, linear_peers)
        return
    yield partial(ceilings, sizes, device)
    yield partial(logits_group, sizes, device, our_rows)
    yield partial(scans, sizes, device)
    if cuda_serves():
        yield partial(logits_group, sizes, device, cuda_rows)
    for shape in sizes.linear:
        yield partial(linear, shape, device, linear_rows)
    yield partial(scaling, sizes, device)


def python_calls(device: str) -> dict[str, Call]:
    """Returns calls so small that what they cost is Python's."""
    inputs = Inputs(32, 512, torch.bfloat16, device)
    return {
        "python_policy_loss": partial(inputs.fused, True),
        "python_eager_policy_loss": partial(inputs.other, baselines.eager_grpo_loss),
        "python_token_logprob": lambda: rlkern.token_logprob(inputs.logits, inputs.token),
    }


def python_us(call: Call, rounds: int) -> float:
    """Returns the microseconds of processor time of a call, of all threads of this process."""
    begin = time.process_time()
    for _ in range(rounds):
        call()
    return (time.process_time() - begin) / rounds * 1e6
