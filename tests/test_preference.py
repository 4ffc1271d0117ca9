# SPDX-License-Identifier: Apache-2.0
"""Preference losses against their papers' equations written out, and sums over sequences."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern.backends import _load
from rlkern.reference.preference_loss import DIVERGENCES, PREFERENCE_KINDS

BACKENDS = [name for name in ("triton", "eager", "cpu") if _load(name)[1] is None]
NAN, B, EPS = math.nan, 6, 0.15
AVERAGING = [name for name, kind in PREFERENCE_KINDS.items() if kind.average]
REFERENCE_FREE = [name for name, kind in PREFERENCE_KINDS.items() if not kind.reference]
SORTING = [name for name, kind in PREFERENCE_KINDS.items() if kind.sorted_by]
OPTIONS = {"conservative": {"label_smoothing": EPS}, "robust": {"label_smoothing": EPS},
           "exo_pair": {"label_smoothing": EPS}, "aot": {"label_smoothing": EPS},
           "discopop": {"tau": 0.3}, "bco_pair": {"reward_shift": -0.4},
           "cpo": {"nll_coef": 0.7}, "simpo": {"margin": 0.3}}  # fmt: skip


def sigma(x):
    return 1 / (1 + math.exp(-x))


def log_odds(mean):
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


def dpo(x):
    return -math.log(sigma(x))


# The loss of one pair from (h_c, h_r, β), as the papers write it; the kinds that sort are apart.
EQUATIONS = {
    "sigmoid": lambda c, r, b: dpo(b * (c - r)),
    "sigmoid_norm": lambda c, r, b: dpo(b * (c - r)),
    "conservative": lambda c, r, b: (1 - EPS) * dpo(b * (c - r)) + EPS * dpo(b * (r - c)),
    "robust": lambda c, r, b: (
        ((1 - EPS) * dpo(b * (c - r)) - EPS * dpo(b * (r - c))) / (1 - 2 * EPS)
    ),
    "hinge": lambda c, r, b: max(0, 1 - b * (c - r)),
    "ipo": lambda c, r, b: (c - r - 1 / (2 * b)) ** 2,
    "ipo_sum": lambda c, r, b: (c - r - 1 / (2 * b)) ** 2,
    "exo_pair": lambda c, r, b: sum(
        p * math.log(p / q) for p, q in ((sigma(b * (c - r)), 1 - EPS), (sigma(b * (r - c)), EPS))
    ),
    "discopop": lambda c, r, b: (
        (1 - sigma(b * (c - r) / 0.3)) * dpo(b * (c - r))
        + sigma(b * (c - r) / 0.3) * math.exp(-b * (c - r))
    ),
    "nca_pair": lambda c, r, b: dpo(b * c) + 0.5 * dpo(-b * c) + 0.5 * dpo(-b * r),
    "sppo_hard": lambda c, r, b: (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
    "bco_pair": lambda c, r, b: dpo(b * c + 0.4) + dpo(-(b * r + 0.4)),
    "apo_zero": lambda c, r, b: 1 - sigma(b * c) + sigma(b * r),
    "apo_down": lambda c, r, b: sigma(b * c) + 1 - sigma(b * (c - r)),
    "cpo": lambda c, r, b: dpo(b * (c - r)) - 0.7 * c,
    "simpo": lambda c, r, b: dpo(b * (c - r) - 0.3),
    "orpo": lambda c, r, b: -c + b * dpo(log_odds(c) - log_odds(r)),
}
SCORES = {
    "reverse_kl": lambda h: h,
    "forward_kl": lambda h: -math.exp(-h),
    "js": lambda h: math.log(2 * math.exp(h) / (1 + math.exp(h))),
    "alpha": lambda h: (1 - math.exp(h) ** -0.3) / 0.3,
}


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned_memory):
    with rlkern.use_backend(request.param):
        yield request.param


def pairs(seed=0, dtype=torch.float64):
    """Returns chosen, rejected, their reference's log-probabilities, and lengths."""
    random = torch.Generator().manual_seed(seed)
    logprob = -1 - 4 * torch.rand(4, B, generator=random, dtype=dtype)
    return logprob.unbind(), torch.randint(1, 9, (2, B), generator=random).unbind()


def arguments_of(kind, logprob, length):
    """Returns what preference_loss takes for this kind, and h of both answers."""
    reference = () if kind in REFERENCE_FREE else logprob[2:]
    names = {"chosen_length": length[0], "rejected_length": length[1]}
    h = [logprob[i] - (reference[i] if reference else 0) for i in (0, 1)]
    if kind in AVERAGING:
        h = [x / n for x, n in zip(h, length)]
    return (*logprob[:2], *reference), names if kind in AVERAGING else {}, h


def lost(kind, logprob, length, beta=0.6, **more):
    positional, lengths, _ = arguments_of(kind, logprob, length)
    options = {**lengths, **OPTIONS.get(kind, {}), **more}
    return rlkern.preference_loss(*positional, kind=kind, beta=beta, **options)


@pytest.mark.parametrize("kind", EQUATIONS)
def test_every_kind_is_the_equation_of_its_paper(kind):
    logprob, length = pairs()
    h = arguments_of(kind, logprob, length)[2]
    weight = torch.linspace(0.1, 1, B, dtype=torch.float64)
    terms = [EQUATIONS[kind](c, r, 0.6) for c, r in zip(*(x.tolist() for x in h))]
    expected = sum(w * x for w, x in zip(weight.tolist(), terms))
    loss = lost(kind, logprob, length, weight=weight).loss
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", SORTING)
def test_the_kinds_that_sort_compare_quantiles(kind):
    logprob, length = pairs()
    c, r, ref_c, ref_r = (x.tolist() for x in logprob)
    columns = list(zip(c, r, ref_c, ref_r))
    if kind == "aot":
        first, second = [a - b for a, b, _, _ in columns], [x - y for _, _, x, y in columns]
        flip = EPS
    else:
        first, second = [a - x for a, _, x, _ in columns], [b - y for _, b, _, y in columns]
        flip = 0.0
    delta = [0.6 * (x - y) for x, y in zip(sorted(first), sorted(second))]
    expected = sum((1 - flip) * dpo(x) + flip * dpo(-x) for x in delta) / B
    assert lost(kind, logprob, length).loss.item() == pytest.approx(expected, rel=1e-6)
    shuffled = [logprob[0], logprob[1].flip(0), logprob[2], logprob[3].flip(0)]
    if kind == "aot_unpaired":  # which rejected answer belongs to which chosen one does not matter
        assert lost(kind, shuffled, length).loss.item() == pytest.approx(expected, rel=1e-6)


def test_every_kind_is_tested():
    assert {*EQUATIONS, *SORTING} == set(PREFERENCE_KINDS) and set(SCORES) == set(DIVERGENCES)


@pytest.mark.parametrize("divergence", SCORES)
def test_every_divergence_is_the_derivative_of_its_f(divergence):
    logprob, length = pairs()
    h = [logprob[0] - logprob[2], logprob[1] - logprob[3]]
    option = {"alpha": 0.3} if divergence == "alpha" else {}
    score = SCORES[divergence]
    expected = sum(dpo(0.6 * (score(c) - score(r))) for c, r in zip(*(x.tolist() for x in h))) / B
    loss = lost("sigmoid", logprob, length, divergence=divergence, **option).loss
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", PREFERENCE_KINDS)
def test_the_gradient_of_every_kind_is_right(kind):
    logprob, length = pairs()
    leaves = [x.clone().requires_grad_() for x in logprob[:2]]

    def loss(chosen, rejected):
        return lost(kind, (chosen, rejected, *logprob[2:]), length).loss

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("kind", PREFERENCE_KINDS)
def test_masked_pairs_leak_neither_into_the_loss_nor_into_gradients(kind):
    logprob, length = pairs()
    mask = torch.tensor([True, False, True, True, False, True])
    expected = lost(kind, [x[mask] for x in logprob], [n[mask] for n in length])
    spoiled = [torch.where(mask, x, NAN) for x in logprob]
    leaves = [x.clone().requires_grad_() for x in spoiled[:2]]
    length = [torch.where(mask, n, 0) for n in length]
    out = lost(kind, (*leaves, *spoiled[2:]), length, mask=mask)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.metrics, expected.metrics)
    for leaf in leaves:
        assert leaf.grad[~mask].eq(0).all() and leaf.grad.isfinite().all()


def test_dpo_without_a_penalty_loses_log_two_with_a_gradient_proportional_to_beta():
    logprob, length = pairs()
    leaf = logprob[0].clone().requires_grad_()
    for beta in (1e-3, 1e-4):
        loss = lost("sigmoid", (leaf, *logprob[1:]), length, beta=beta).loss
        assert loss.item() == pytest.approx(math.log(2), rel=10 * beta)
        (grad,) = torch.autograd.grad(loss, leaf)
        expected = torch.full_like(grad, -beta / (2 * B))
        torch.testing.assert_close(grad, expected, rtol=10 * beta, atol=0)


def test_half_of_the_labels_flipped_leaves_nothing_to_prefer_and_none_flipped_is_dpo():
    logprob, length = pairs()
    plain = lost("sigmoid", logprob, length).loss
    for kind in ("conservative", "robust"):
        assert lost(kind, logprob, length, label_smoothing=0.0).loss.equal(plain)
    swapped = (logprob[1], logprob[0], logprob[3], logprob[2])
    near_half = [lost("conservative", x, length, label_smoothing=0.5 - 1e-12).loss
                 for x in (logprob, swapped)]  # fmt: skip
    torch.testing.assert_close(*near_half, rtol=1e-9, atol=0)


def test_ipo_is_least_where_the_margin_is_one_over_two_beta():
    zero = torch.zeros(1, dtype=torch.float64)
    chosen = torch.full((1,), 5.0, dtype=torch.float64, requires_grad=True)
    out = rlkern.preference_loss(chosen, zero, zero, zero, kind="ipo_sum", beta=0.1)
    out.loss.backward()
    assert out.loss.item() == 0 and chosen.grad.item() == 0


def test_reverse_kl_is_the_limit_of_the_alpha_divergence_and_forward_kl_its_other_end():
    logprob, length = pairs()
    plain = lost("sigmoid", logprob, length).loss.item()
    small = lost("sigmoid", logprob, length, divergence="alpha", alpha=1e-7).loss.item()
    assert small == pytest.approx(plain, rel=1e-5)
    forward = lost("sigmoid", logprob, length, divergence="forward_kl").loss.item()
    large = lost("sigmoid", logprob, length, divergence="alpha", alpha=1 - 1e-9).loss.item()
    assert large == pytest.approx(forward, rel=1e-6)


def test_a_constant_added_to_policy_and_reference_changes_nothing():
    logprob, length = pairs()
    moved = [x + 3 if i in (0, 2) else x for i, x in enumerate(logprob)]
    for kind in set(PREFERENCE_KINDS) - set(REFERENCE_FREE) - {"aot"}:
        expected = lost(kind, logprob, length).loss
        torch.testing.assert_close(lost(kind, moved, length).loss, expected, rtol=1e-9, atol=0)


def test_metrics_are_what_a_person_computes_and_parts_add_up():
    chosen, rejected = torch.tensor([-1.0, -5.0]), torch.tensor([-3.0, -4.0])
    ref = torch.tensor([-2.0, -4.0])
    out = rlkern.preference_loss(chosen, rejected, ref, ref, beta=0.5)
    found = rlkern.preference_metrics_dict(out.metrics)
    assert found == {"count": 2, "rewards/chosen": 0.0, "rewards/rejected": -0.25,
                     "rewards/margins": 0.25, "rewards/accuracies": 0.5, "logps/chosen": -3.0,
                     "logps/rejected": -3.5}  # fmt: skip
    parts = [rlkern.preference_loss(*(x[i : i + 1] for x in (chosen, rejected, ref, ref)), beta=0.5)
             for i in (0, 1)]  # fmt: skip
    assert sum(part.metrics for part in parts).equal(out.metrics)


def test_kto_is_its_equation_and_its_reference_point_a_constant():
    logprob, ref = (x.clone().requires_grad_() for x in pairs()[0][:2])
    desirable = torch.tensor([True, False, True, True, False, False])
    shifted = logprob.roll(1) + 2
    kl = rlkern.mismatched_kl(shifted, ref)
    z = max(0.0, (shifted - ref).mean().item())
    assert kl.item() == pytest.approx(z, rel=1e-6) and z > 0 and not kl.requires_grad
    terms = [1.5 * (1 - sigma(0.6 * (h - z))) if good else 0.5 * (1 - sigma(0.6 * (z - h)))
             for h, good in zip((logprob - ref).tolist(), desirable.tolist())]  # fmt: skip
    coefs = {"beta": 0.6, "desirable_coef": 1.5, "undesirable_coef": 0.5}

    def loss(x):
        return rlkern.kto_loss(x, ref, desirable, kl, **coefs).loss

    assert loss(logprob).item() == pytest.approx(sum(terms) / B, rel=1e-6)
    assert torch.autograd.gradcheck(loss, logprob)
    (grad,) = torch.autograd.grad(loss(logprob), logprob)
    assert grad[desirable].lt(0).all() and grad[~desirable].gt(0).all()
    assert rlkern.mismatched_kl(ref, shifted).item() == 0


def test_kto_counts_desirable_and_undesirable_answers_apart():
    logprob, ref = torch.tensor([-1.0, -4.0, NAN, -3.0]), torch.tensor([-2.0, -2.0, NAN, -2.0])
    desirable, mask = torch.tensor([True, False, True, True]), torch.tensor([1, 1, 0, 1]).bool()
    out = rlkern.kto_loss(logprob, ref, desirable, torch.tensor(0.0), beta=0.5, mask=mask)
    found = rlkern.preference_metrics_dict(out.metrics)
    assert found["count"] == 3 and found["rewards/accuracies"] == pytest.approx(2 / 3)
    assert found["rewards/chosen"] == 0.0 and found["rewards/rejected"] == -1.0
    assert found["logps/chosen"] == -2.0 and found["logps/rejected"] == -4.0


def test_the_reward_model_loss_is_bradley_terry_with_margin_and_centre():
    (chosen, rejected, margin, _), _ = pairs()
    terms = [dpo(c - r - m) + 0.01 * (c + r) ** 2
             for c, r, m in zip(*(x.tolist() for x in (chosen, rejected, margin)))]  # fmt: skip
    mask = torch.tensor([True] * B + [False])

    def padded(x):
        return torch.cat([x, x.new_tensor([NAN])])

    leaf = padded(chosen).requires_grad_()
    rest = {"margin": padded(margin), "center_coef": 0.01, "mask": mask}
    out = rlkern.reward_model_loss(leaf, padded(rejected), **rest)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(sum(terms) / B, rel=1e-6)
    assert leaf.grad[-1] == 0 and leaf.grad.isfinite().all()
    found = rlkern.preference_metrics_dict(out.metrics)
    accuracy = (chosen > rejected).double().mean().item()
    assert found["rewards/accuracies"] == accuracy and math.isnan(found["logps/chosen"])


def ragged(dtype=torch.float32, seed=3):
    """Returns logprob (4, 1500) and a mask with holes, its rows of very different length."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([1500, 0, 7, 613])
    mask = torch.rand(4, 1500, generator=random) < 0.8
    mask &= torch.arange(1500) < lengths[:, None]
    logprob = -5 * torch.rand(4, 1500, generator=random).to(dtype)
    return torch.where(mask, logprob, NAN), mask, lengths


def packed(x, lengths):
    """Returns the rows one after another, less their padding, and the bounds."""
    flat = torch.cat([row[:n] for row, n in zip(x, lengths.tolist())])
    return flat, torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def test_sums_over_sequences_are_those_of_float64_rounded_once(backend):
    logprob, mask, _ = ragged()
    exact = torch.where(mask, logprob.double(), 0.0).sum(-1)
    assert rlkern.sequence_logprob(logprob, mask).equal(exact.float())
    mean = exact.float() / mask.sum(-1).clamp(min=1)
    torch.testing.assert_close(rlkern.mean_sequence_logprob(logprob, mask), mean)


def test_packed_sequences_have_the_bits_of_padded_ones(backend):
    logprob, mask, lengths = ragged()
    flat, bounds = packed(logprob, lengths)
    flat_mask, _ = packed(mask, lengths)
    padded_leaf, flat_leaf = logprob.requires_grad_(), flat.detach().requires_grad_()
    padded = rlkern.sequence_logprob(padded_leaf, mask)
    for dtype in (torch.int64, torch.int32):
        together = rlkern.sequence_logprob(flat_leaf, flat_mask, cu_seqlens=bounds.to(dtype))
        assert together.equal(padded)
    upstream = torch.tensor([1.0, 2.0, -3.0, 0.5])
    padded.backward(upstream)
    together.backward(upstream)
    assert flat_leaf.grad.equal(packed(padded_leaf.grad, lengths)[0])
    assert padded_leaf.grad.equal(torch.where(mask, upstream[:, None], 0.0))


@pytest.mark.parametrize("f", (rlkern.sequence_logprob, rlkern.mean_sequence_logprob))
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "triton"])
def test_the_gradient_of_sequence_sums_is_right(name, f):
    logprob, mask, lengths = (x[:, :20] if x.ndim > 1 else x.clamp(max=20) for x in ragged())
    logprob = torch.nan_to_num(logprob).double()
    flat, bounds = packed(logprob, lengths)
    flat_mask, _ = packed(mask, lengths)
    with rlkern.use_backend(name):
        assert torch.autograd.gradcheck(lambda x: f(x, mask), logprob.requires_grad_())
        leaf = flat.detach().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: f(x, flat_mask, cu_seqlens=bounds), leaf)
        leaf = torch.ones(2, 3, requires_grad=True)
        total = f(leaf, leaf > 0).sum()
        with pytest.raises(RuntimeError, match="double backward"):
            torch.autograd.grad(total, leaf, create_graph=True)


@pytest.mark.parametrize("shape", ((0, 3), (2, 0)))
def test_no_sequences_and_no_tokens_are_fine(backend, shape):
    leaf = torch.ones(shape, requires_grad=True)
    total = rlkern.sequence_logprob(leaf, leaf > 0)
    total.sum().backward()
    assert total.tolist() == [0.0] * shape[0] and leaf.grad.shape == shape


def test_sequence_sums_pass_opcheck(backend):
    x, mask = torch.rand(3, 4), torch.rand(3, 4) < 0.5
    bounds = torch.tensor([0, 5, 5, 12])
    calls = [("segment_sum", (x.requires_grad_(), mask, None)),
             ("segment_sum", (torch.rand(12, requires_grad=True), mask.view(-1), bounds)),
             ("segment_sum_backward", (torch.rand(3), mask, None)),
             ("segment_sum_backward", (torch.rand(3), mask.view(-1), bounds))]  # fmt: skip
    for name, arguments in calls:
        torch.library.opcheck(getattr(torch.ops.rlkern, name).default, arguments)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ extension is not built")
def test_bounds_outside_the_tokens_are_refused_before_anything_is_read(monkeypatch):
    monkeypatch.delenv("RLKERN_CHECK_VALUES", raising=False)
    x = torch.ones(4)
    for bounds in ([0, 5], [1, 4], [0, 3, 2, 4], [-1, 4]):
        with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to 4"):
            rlkern.sequence_logprob(x, x > 0, cu_seqlens=torch.tensor(bounds))


@pytest.mark.parametrize("kind", ("sigmoid", "exo_pair", "ipo", "aot", "orpo"))
def test_no_beta_and_no_batch_size_compiles_a_third_graph(kind):
    def run(chosen, rejected, reference, lengths, beta):
        return rlkern.preference_loss(
            chosen, rejected, *reference, kind=kind, beta=beta, **lengths, **OPTIONS.get(kind, {})
        )

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for n, beta in ((3, 0.1), (4, 0.2), (5, 0.35), (6, 2.0)):
        logprob, length = pairs(n, torch.float32)
        logprob, length = [x[:n] for x in logprob], [x[:n] for x in length]
        (chosen, *rest), lengths, _ = arguments_of(kind, logprob, length)
        leaf = chosen.clone().requires_grad_()
        inputs = (leaf, rest[0], rest[1:], lengths, beta)
        (got, metrics), expected = compiled(*inputs), run(*inputs)
        torch.testing.assert_close(got, expected.loss)
        torch.testing.assert_close(metrics, expected.metrics)
        grads = [torch.autograd.grad(x, leaf)[0] for x in (got, expected.loss)]
        torch.testing.assert_close(*grads)
    assert counter.frame_count <= 2


ONES, PAIR = torch.ones(3), torch.ones(2)


def pair_call(**changed):
    good = dict.fromkeys(
        ("chosen_logprob", "rejected_logprob", "ref_chosen_logprob", "ref_rejected_logprob"), -ONES
    )
    return rlkern.preference_loss(**{**good, **changed})


def sum_call(**changed):
    return rlkern.sequence_logprob(**{"logprob": ONES[None], "mask": ONES[None].bool(), **changed})


@pytest.mark.parametrize(
    "call,changed,sentence",
    (
        (pair_call, {"chosen_logprob": ONES[None]}, r"chosen_logprob must be \(B,\), got \(1, 3\)"),
        (pair_call, {"rejected_logprob": PAIR}, r"rejected_logprob must be \(3,\) on cpu, got"),
        (pair_call, {"ref_chosen_logprob": None}, "ref_chosen_logprob must be given with kind 'si"),
        (pair_call, {"kind": "cpo"}, "ref_chosen_logprob must not be given with kind 'cpo'"),
        (pair_call, {"kind": "ipo"}, "chosen_length must be given with kind 'ipo'"),
        (pair_call, {"chosen_length": ONES}, "chosen_length must not be given with kind 'sigmoid'"),
        (pair_call, {"kind": "dpo"}, "kind must be one of sigmoid, .*, got 'dpo'"),
        (pair_call, {"divergence": "tv"}, "divergence must be one of reverse_kl, .*, got 'tv'"),
        (pair_call, {"kind": "apo_zero", "divergence": "js"}, "has reverse_kl alone, got"),
        (pair_call, {"beta": 0.0}, "beta must be greater than 0, got 0.0"),
        (pair_call, {"tau": 1.0}, "unknown coefficient 'tau' of kind 'sigmoid', expected one of b"),
        (
            pair_call,
            {"kind": "robust", "label_smoothing": 0.5},
            "label_smoothing must be less than",
        ),
        (pair_call, {"kind": "exo_pair", "label_smoothing": 0}, "must be greater than 0, got 0.0"),
        (pair_call, {"kind": "aot", "weight": ONES}, "weight must not be given with kind 'aot'"),
        (pair_call, {"mask": ONES}, "mask must be bool"),
        (
            pair_call,
            {"chosen_logprob": NAN * ONES},
            "chosen_logprob must be finite where mask is T",
        ),
        (sum_call, {"logprob": ONES, "mask": ONES.bool()}, r"logprob must be \(B, T\), got \(3,\)"),
        (sum_call, {"cu_seqlens": torch.tensor([0, 3])}, r"with cu_seqlens logprob must be \(N,\)"),
        (sum_call, {"cu_seqlens": ONES}, "cu_seqlens must be int64 or int32, got"),
        (sum_call, {"mask": ONES[None]}, "mask must be bool"),
    ),
)
def test_bad_input_ends_in_one_sentence(call, changed, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        call(**changed)
