# SPDX-License-Identifier: Apache-2.0
"""Kept sets, softcap and absent tokens in the Triton kernels: values, and what they touch."""

import pytest
import torch

pytest.importorskip("triton")
from rlkern.backends import eager as reference
from rlkern.backends import triton as kernels  # noqa: E402
from rlkern.backends.eager.token_logprob import (  # noqa: E402
    ABSENT,
    Softmax,
    Statistics,
    Upstream,
)
from rlkern.backends.eager.token_objective import Objective, Rows  # noqa: E402
from rlkern.testing.traffic import traffic  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
needs_interpreter = pytest.mark.skipif(not kernels.INTERPRETED, reason="counts accesses")
OBJECTIVE = Objective("ppo_clip", "token", "k3", (0.2, 0.28, 0.0, 0.0), 0.1, 0.01)
FOREIGN, UNUSED = -7, -1


def kept_ids(V, K, rows=4):
    """Returns (1, rows, K): a set without the token 0, one with it, the whole, one elsewhere."""
    keep = torch.full((1, rows, K), UNUSED)
    ids = torch.randperm(V - 1, generator=torch.Generator().manual_seed(V)) + 1
    n = min(K, V - 1)
    keep[0, 0, :n] = ids[:n]
    keep[0, 1, :n], keep[0, 1, 0] = ids[:n], 0
    keep[0, 3, ::2] = FOREIGN
    return keep.to(DEVICE)


def row_batch(V, dtype=torch.float32, scale=3.0):
    """Returns (logits, token, rows) of four rows whose token is 0."""
    random = torch.Generator().manual_seed(V)
    logits = (scale * torch.randn(1, 4, V, generator=random)).to(dtype)
    token = torch.zeros(1, 4, dtype=torch.int64)
    vectors = (torch.randn(1, 4, generator=random) for _ in range(3))
    weight = torch.rand(1, 4, generator=random) + 0.1
    advantage, old, ref = (x.to(DEVICE) for x in vectors)
    rows = Rows(advantage, weight.to(DEVICE), old, ref, weight.to(DEVICE) + 1)
    return logits.to(DEVICE), token.to(DEVICE), rows


def widened(x):
    """Returns the same numbers in float64 on the CPU."""
    if isinstance(x, tuple):
        return type(x)(*map(widened, x))
    if isinstance(x, torch.Tensor):
        return x.cpu().double() if x.is_floating_point() else x.cpu()
    return x


def everything(backend, logits, token, rows, softmax):
    """Returns what is scored, the backward of its sum, and loss, metrics and gradient in place."""
    scored = backend.token_logprob(logits, token, None, softmax)
    first, second = logits.clone(), logits.clone()
    upstream = Upstream(rows.advantage, rows.old_logprob, rows.ref_logprob)
    backend.token_logprob_backward(first, token, None, softmax, scored.statistics, upstream, first)
    loss, metrics = backend.policy_loss(second, token, rows, softmax, OBJECTIVE, second)
    # What rounding takes from one of the two it may give to the other.
    lse = scored.row_max.double() + scored.log_sum
    return {
        "logprob": scored.logprob, "entropy": scored.entropy, "lse": lse.to(scored.logprob.dtype),
        "sum_pi_squared": scored.sum_pi_squared, "backward": first,
        "loss": torch.cat([loss[None], metrics]), "gradient": second,
    }  # fmt: skip


def assert_no_worse(*inputs):
    """Asserts error ≤ 2 × the reference's own error in the same dtype + 4 ulp, all outputs."""
    got, eager = everything(kernels, *inputs), everything(reference, *inputs)
    oracle = everything(reference, *map(widened, inputs))
    for name, exact in oracle.items():
        x, e = got[name].cpu(), eager[name].cpu()
        error, own = ((y.double() - exact).abs().max() for y in (x, e))
        floor = 4 * torch.finfo(x.dtype).eps * exact.abs().max()
        assert error <= 2 * own + floor, (name, error.item(), own.item())


@pytest.mark.parametrize("softcap", [0.0, 6.0])
@pytest.mark.parametrize("V,K", [(21, 1), (21, 25), (5000, 64), (9000, 1100)])
def test_a_kept_set_is_the_whole_world_of_its_row(V, K, softcap):
    inv_temperature = torch.tensor([[0.7, 1.0, 1.5, 1.0]], device=DEVICE)
    assert_no_worse(*row_batch(V), Softmax(inv_temperature, softcap, kept_ids(V, K)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.01, 3.0, 60.0])
def test_a_softcap_bends_logits_of_every_size(scale, dtype):
    logits, token, rows = row_batch(5000, dtype, scale)
    logits[0, 1, 5:] = -torch.inf
    assert_no_worse(logits, token, rows, Softmax(None, 7.0, None))


def test_a_kept_set_gives_the_same_bits_in_place_and_apart():
    logits, token, rows = row_batch(5000)
    softmax, apart = Softmax(None, 0.0, kept_ids(5000, 64)), torch.full_like(logits, torch.nan)
    kernels.policy_loss(logits, token, rows, softmax, OBJECTIVE, apart)
    kernels.policy_loss(logits, token, rows, softmax, OBJECTIVE, logits)
    assert torch.equal(logits, apart)


@pytest.mark.parametrize("logit,expected", [(-torch.inf, "-inf"), (torch.nan, "nan")])
def test_a_token_of_no_probability_or_no_number_stays_so_in_a_kept_set(logit, expected):
    logits, token, _ = row_batch(21)
    logits[0, :, 0] = logit
    scored = kernels.token_logprob(logits, token, None, Softmax(keep=kept_ids(21, 6)))
    own = reference.token_logprob(logits, token, None, Softmax(keep=kept_ids(21, 6)))
    # The last row keeps nothing else of this slice.
    found = torch.stack([scored.logprob, scored.entropy, scored.sum_pi_squared])[..., :3]
    wanted = torch.stack([own.logprob, own.entropy, own.sum_pi_squared])[..., :3]
    torch.testing.assert_close(found, wanted, equal_nan=True)
    assert {str(x) for x in found[0].flatten().tolist()} == {expected}


@pytest.mark.parametrize("K", [0, 6])
def test_a_slice_without_the_token_gives_the_gradient_of_its_part_of_the_row(K):
    logits, token, rows = row_batch(40)
    keep = torch.arange(3, 40, 6)[None, None].repeat(1, 4, 1).to(DEVICE) if K else None
    whole = logits.clone()
    scored = kernels.token_logprob(logits, token, None, Softmax(keep=keep))
    upstream = Upstream(rows.advantage, rows.old_logprob, rows.ref_logprob)
    arguments = (scored.statistics, upstream)
    kernels.token_logprob_backward(whole, token, None, Softmax(keep=keep), *arguments, whole)
    part, absent = logits[..., 13:].clone(), torch.full_like(token, ABSENT)
    if keep is not None:
        keep = torch.where(keep < 13, FOREIGN, keep - 13)
    alone = kernels.token_logprob(part, absent, None, Softmax(keep=keep))
    kernels.token_logprob_backward(part, absent, None, Softmax(keep=keep), *arguments, part)
    assert torch.equal(part, whole[..., 13:])
    assert alone.logprob.isnan().all() and alone.entropy.isfinite().all()


@needs_interpreter
def test_of_a_kept_row_only_its_ids_are_read():
    V, K = 9000, 64
    logits, token, rows = row_batch(V)
    keep, grad = kept_ids(V, K), torch.full_like(logits, torch.nan)
    logits[0, 0] = torch.where(torch.isin(torch.arange(V), keep[0, 0]), logits[0, 0], torch.nan)
    logits[0, 0, 0] = 0.5
    rows = rows._replace(weight=rows.weight * torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    with traffic() as moved:
        kernels.policy_loss(logits, token, rows, Softmax(keep=keep), OBJECTIVE, grad)
    read = moved.times_loaded(logits)[0]
    assert read[:2].sum() == 2 * K + 1  # one set holds its token, the other has it besides
    assert (read[2] > 0).all() and read[3].sum() == 0
    assert (moved.times_loaded(keep)[0, 3] == 0).all() and moved.outside == 0
    assert grad.isfinite().all() and grad[0, 0].count_nonzero() == K + 1


@needs_interpreter
def test_an_id_beyond_the_vocabulary_is_left_alone():
    logits, token, rows = row_batch(21)
    keep = torch.tensor([3, 21, 5000, 2**40]).repeat(1, 4, 1)
    with traffic() as moved:
        kernels.policy_loss(logits, token, rows, Softmax(keep=keep), OBJECTIVE, logits)
    assert moved.outside == 0 and (logits[..., 1:] != 0).sum() == 4


def test_masked_rows_keep_their_garbage_to_themselves():
    logits, token, _ = row_batch(21)
    logits[0, 1], token[0, 1] = torch.nan, -100
    keep = kept_ids(21, 6)
    keep[0, 1] = 10**12
    mask = torch.tensor([[True, False, True, True]], device=DEVICE)
    softmax = Softmax(torch.tensor([[1.0, torch.nan, 1.0, 1.0]], device=DEVICE), 3.0, keep)
    scored = kernels.token_logprob(logits, token, mask, softmax)
    assert all((x[0, 1] == 0) and x.isfinite().all() for x in scored)
    garbage = torch.where(mask, 0.5, torch.nan)
    statistics = Statistics(*(torch.where(mask, x, torch.nan) for x in scored.statistics))
    kernels.token_logprob_backward(
        logits, token, mask, softmax, statistics, Upstream(garbage, garbage, garbage), logits
    )
    assert (logits[0, 1] == 0).all() and logits.isfinite().all()
