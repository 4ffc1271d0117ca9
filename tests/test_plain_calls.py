# SPDX-License-Identifier: Apache-2.0
"""A call of plain tensors goes past the dispatcher, with the same bits; others go through it."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rlkern
from rlkern.algorithms import algorithm
from rlkern.backends import _load
from rlkern.ops import _library as library
from rlkern.ops import _objective as objectives

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
B, T, V = 3, 5, 7


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def rows(seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, T, V, generator=random).requires_grad_()
    token = torch.randint(V, (B, T), generator=random)
    advantage, old, ref = torch.randn(3, B, T, generator=random)
    return logits, token, advantage, torch.rand(B, T, generator=random) < 0.8, old, ref


def policy(algorithm, **options):
    logits, token, advantage, mask, old, ref = rows()
    out = rlkern.policy_loss(
        logits * 1, token, advantage, mask, old_logprob=old, ref_logprob=ref, kl_coef=0.1,
        algorithm=algorithm, **options,
    )  # fmt: skip
    return *out, *torch.autograd.grad(2 * out.loss, logits)


def scores():
    logits, token, *_ = rows()
    out = rlkern.token_logprob(logits, token)
    return *out, *torch.autograd.grad((out.logprob + out.entropy).sum(), logits)


def objective():
    _, _, advantage, mask, old, ref = rows()
    logprob = ref.clone().requires_grad_()
    out = rlkern.token_objective(logprob, advantage, mask, old_logprob=old)
    return *out, *torch.autograd.grad(out.loss, logprob)


def value():
    _, _, target, mask, old, ref = rows()
    leaf = ref.clone().requires_grad_()
    out = rlkern.value_loss(leaf, old, target, mask)
    return *out, *torch.autograd.grad(out.loss, leaf)


def td():
    logits, token, reward, mask, *_ = rows()
    q = logits[0].detach().requires_grad_()
    out = rlkern.td_loss(q, token[0], reward[0], mask[0], logits[1].detach())
    return *out, *torch.autograd.grad(out.loss, q)


def scan():
    _, _, bias, _, decay, _ = rows()
    leaves = bias.requires_grad_(), decay.requires_grad_()
    x = rlkern.reverse_scan(*leaves)
    return x, *torch.autograd.grad(x.square().sum(), leaves)


CALLS = {
    "policy_loss": lambda: policy("grpo"),
    "in place": lambda: policy("grpo", inplace=True),
    "sequences": lambda: policy("gspo"),
    "token_logprob": scores,
    "token_objective": objective,
    "value_loss": value,
    "td_loss": td,
    "reverse_scan": scan,
}


class Functions(TorchFunctionMode):
    """Sees every function that is called, and changes nothing."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    """Remembers the operations that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_a_call_past_the_dispatcher_has_the_bits_of_one_through_it(name):
    plain = CALLS[name]()
    with Functions():
        dispatched = CALLS[name]()
    assert all(x.equal(y) for x, y in zip(plain, dispatched, strict=True))


class Subclass(torch.Tensor):
    """A tensor that may listen to what is done with it."""


def refusing(*arguments):
    raise AssertionError("through the dispatcher")


def test_a_plain_call_does_not_reach_the_dispatcher_and_one_under_a_mode_does():
    with Dispatched() as seen:
        policy("grpo")
    assert "rlkern::policy_loss" in seen.names
    operation = library.Operation(refusing, lambda x: x + 1)
    assert operation(torch.zeros(())).item() == 1
    for refused in (torch.zeros((), device="meta"), torch.zeros(()).as_subclass(Subclass)):
        with pytest.raises(AssertionError, match="through the dispatcher"):
            operation(refused)


def test_a_coefficient_that_changes_where_it_lies_is_read_again(monkeypatch):
    kl_coef = torch.tensor(0.0)
    before = policy_with(kl_coef)
    kl_coef.fill_(0.5)
    assert policy_with(kl_coef) == policy_with(0.5) != before
    defaults = algorithm("grpo").defaults
    expected = policy_with(0.5, clip_low=0.01)
    monkeypatch.setitem(defaults, "clip_low", 0.01)
    assert policy_with(0.5) == expected


def policy_with(kl_coef, **options):
    logits, token, advantage, mask, old, ref = rows()
    return rlkern.policy_loss(
        logits, token, advantage, mask, old_logprob=old, ref_logprob=ref, kl_coef=kl_coef,
        **options,
    ).loss.item()  # fmt: skip


def test_what_is_remembered_of_objectives_is_bounded_and_never_fake(monkeypatch):
    monkeypatch.delenv("RLKERN_CHECK_VALUES")  # nothing can be read from a fake
    logits, token, advantage, mask, old, ref = rows()
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (logits, token, advantage, mask)]
        rlkern.policy_loss(*fakes, clip_low=0.123)
    for i in range(2 * objectives._MOST_MADE):
        rlkern.policy_loss(logits, token, advantage, mask, clip_low=0.123 + i / 1000)
    assert len(objectives._MADE) <= objectives._MOST_MADE
    numbers = [made.form[-1] for _, made in objectives._MADE.values()]
    assert numbers and all(type(x) is torch.Tensor for x in numbers)
