# SPDX-License-Identifier: Apache-2.0
"""The companions of log-probabilities: the mean logit, and whether the token is the first maximum.

Triton's kernels are called by their backend, the others through the public door.
"""

import pytest
import torch
from batch_helpers import BACKENDS, same_bits

import rlkern
from rlkern.backends import eager as reference
from rlkern.backends.eager.token_logprob import Softmax

NAN, INF = torch.nan, torch.inf
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ROWS = {
    "in order": ([1.0, 2.0, 3.0], [False, False, True]),
    "two largest": ([3.0, 1.0, 3.0], [True, False, False]),
    "all the same": ([0.0, -0.0, 0.0], [True, False, False]),
    "one infinite": ([1.0, INF, 2.0], [False, True, False]),
    "one banned": ([-INF, 1.0, -INF], [False, True, False]),
    "all banned": ([-INF, -INF, -INF], [True, False, False]),
    "a NaN first": ([NAN, 2.0, 1.0], [False, False, False]),
    "a NaN last": ([1.0, 2.0, NAN], [False, False, False]),
    "nothing but NaN": ([NAN, NAN, NAN], [False, False, False]),
}


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    """Runs a test on each backend, in memory that was NaN."""
    with rlkern.use_backend(request.param):
        yield request.param


def companions(logits, token, **options):
    out = rlkern.token_logprob(logits, token, companions=True, **options)
    return out.mean_logit, out.is_argmax


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", ROWS)
def test_the_first_maximum_is_the_lowest_of_the_largest_and_a_nan_leaves_none(backend, row, dtype):
    numbers, expected = ROWS[row]
    # Also where the row is as long as several vectors and ends between two of them.
    for before, after in ((0, 0), (45, 0), (0, 45), (70, 37)):
        parts = [torch.full((n,), -INF) for n in (before, after)]
        logits = torch.cat([parts[0], torch.tensor(numbers), parts[1]]).to(dtype)
        token = torch.arange(3) + before
        found = companions(logits.expand(3, -1).contiguous(), token)[1]
        first = before == 0 or row != "all banned"
        assert found.tolist() == [x and first for x in expected], (before, after)


def test_every_token_of_many_rows_agrees_with_argmax(backend):
    random = torch.Generator().manual_seed(3)
    for V in (1, 2, 15, 16, 17, 64, 129, 4097):
        logits = torch.randint(0, 4, (7, V), generator=random).bfloat16()  # most are equal
        for token in {*range(min(V, 40)), V - 1, V // 2}:
            found = companions(logits, torch.full((7,), token))[1]
            assert torch.equal(found, logits.argmax(-1) == token), (V, token)


def test_the_mean_is_of_capped_logits_over_the_temperature(backend):
    random = torch.Generator().manual_seed(4)
    logits = 5 * torch.randn(3, 4, 131, generator=random, dtype=torch.float64)
    token, temperature = torch.randint(131, (3, 4), generator=random), torch.rand(3, 4) + 0.5
    z = 2.0 * torch.tanh(logits / 2.0) / temperature.double().unsqueeze(-1)
    for keep in (None, token.unsqueeze(-1)):
        found = companions(logits, token, temperature=temperature, softcap=2.0, keep=keep)[0]
        torch.testing.assert_close(found, z.mean(-1), rtol=1e-7, atol=1e-7)
    assert torch.equal(companions(logits, token, keep=keep)[1], logits.argmax(-1) == token)


def test_a_masked_row_is_not_read_and_has_no_companions(backend):
    logits = torch.full((2, 5), NAN)
    logits[1] = torch.arange(5.0)
    mask = torch.tensor([False, True])
    mean, first = companions(logits, torch.tensor([-100, 4]), mask=mask)
    assert mean.tolist() == [0.0, 2.0] and first.tolist() == [False, True]


def test_an_unmasked_nan_or_banned_logit_is_seen_in_the_mean(backend):
    logits = torch.tensor([[0.0, NAN], [0.0, -INF]])
    mean = companions(logits, torch.tensor([0, 0]))[0]
    assert mean[0].isnan() and mean[1] == -INF


@pytest.mark.parametrize("inplace", (False, True))
def test_who_asks_gets_the_bits_and_the_gradient_of_who_does_not(backend, inplace):
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 50, generator=random)
    token = torch.randint(50, (2, 3), generator=random)
    results = []
    for asks in (False, True):
        leaf = logits.clone().requires_grad_()
        out = rlkern.token_logprob(leaf * 1, token, inplace=inplace, companions=asks)
        (out.logprob + out.entropy + out.lse).sum().backward()
        results.append([x.detach() for x in out[:4]] + [leaf.grad])
        assert len(out) == (6 if asks else 4)
    assert same_bits(*results)
    assert not out.mean_logit.requires_grad and not out.is_argmax.requires_grad


def test_a_fused_head_gives_those_of_its_logits(backend):
    random = torch.Generator().manual_seed(6)
    hidden, weight = torch.randn(2, 9, 4, generator=random), torch.randn(31, 4, generator=random)
    token, mask = torch.randint(31, (2, 9), generator=random), torch.arange(9).expand(2, 9) != 4
    hidden.requires_grad_()
    options = {"temperature": 0.7, "softcap": 3.0, "mask": mask, "companions": True}
    out = rlkern.linear_token_logprob(hidden, weight, token, wave=5, **options)
    expected = rlkern.token_logprob((hidden @ weight.t()).detach(), token, **options)
    for name, x in expected._asdict().items():
        torch.testing.assert_close(getattr(out, name).detach(), x)
    out.logprob.sum().backward()
    assert hidden.grad.isfinite().all()
    plain = rlkern.linear_token_logprob(hidden, weight, token, mask=mask)
    assert type(plain) is rlkern.TokenLogprob and type(out) is rlkern.CompanionLogprob


def test_a_compiled_call_has_the_same_companions(backend):
    logits, token = torch.randn(3, 40), torch.tensor([0, 39, 7])
    compiled = torch.compile(companions, backend="aot_eager", fullgraph=True)
    assert same_bits(compiled(logits, token), companions(logits, token))


def test_a_slice_of_the_vocabulary_has_no_companions():
    for call, tensors in (
        (rlkern.token_logprob, [torch.zeros(1, 2)]),
        (rlkern.linear_token_logprob, [torch.zeros(1, 2), torch.zeros(2, 2)]),
    ):
        with pytest.raises(ValueError, match="companions must be False with group, got True"):
            call(*tensors, torch.tensor([0]), group=object(), companions=True)


@pytest.mark.parametrize("name", ("token_logprob_companions", "linear_token_logprob_companions"))
def test_the_operation_passes_opcheck(backend, name):
    logits, token = torch.randn(1, 6, 5), torch.tensor([[0, 4, 2, 2, 1, 3]])
    mask, keep = torch.arange(6)[None] > 0, torch.tensor([[[0, 1]]]).repeat(1, 6, 1)
    call = (logits.requires_grad_(), token, mask, torch.full((1, 6), 2.0), 3.0, keep)
    if name.startswith("linear"):
        states, weight = torch.randn(6, 3).requires_grad_(), torch.randn(5, 3).requires_grad_()
        rows = [x.flatten(0, 1) for x in call[1:4]]
        call = (states, weight, None, None, None, 1.0, *rows, 3.0, keep[0], 2)
    torch.library.opcheck(getattr(torch.ops.rlkern, name).default, call)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("kept", (False, True))
def test_triton_gives_the_companions_of_the_reference(kept, dtype):
    pytest.importorskip("triton")
    from rlkern.backends import triton as kernels

    random = torch.Generator().manual_seed(7)
    keep = torch.tensor([0, 3])[None, None].repeat(1, 4, 1) if kept else None
    for numbers, _ in ROWS.values():
        for length, softcap in ((40, 0.0), (40, 2.0), (5000, 0.0)):
            logits = torch.randn(1, 4, length, generator=random) - 9
            logits[0, :3, -3:] = torch.tensor(numbers)
            logits = logits.to(dtype)
            token = torch.tensor([[length - 3, length - 2, length - 1, 0]])
            mask = torch.tensor([[True, True, True, False]])
            softmax = Softmax(torch.full((1, 4), 0.5), softcap, keep)
            own = kernels.token_logprob(logits, token, mask, softmax)
            scored, found = kernels.token_logprob_companions(logits, token, mask, softmax)
            _, expected = reference.token_logprob_companions(logits, token, mask, softmax)
            torch.testing.assert_close(scored, own, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(found.is_argmax, expected.is_argmax)
            torch.testing.assert_close(found.mean_logit, expected.mean_logit, equal_nan=True)
