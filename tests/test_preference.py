# SPDX-License-Identifier: Apache-2.0
"""Preference losses against their papers' equations written out."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern.backends.eager.preference_loss import DIVERGENCES, PREFERENCE_KINDS

NAN, B, EPS = math.nan, 6, 0.15
AVERAGING = [name for name, kind in PREFERENCE_KINDS.items() if kind.average]
REFERENCE_FREE = [name for name, kind in PREFERENCE_KINDS.items() if not kind.reference]
SORTING = [name for name, kind in PREFERENCE_KINDS.items() if kind.sorted_by]
OPTIONS = {"conservative": {"label_smoothing": EPS}, "robust": {"label_smoothing": EPS},
           "exo_pair": {"label_smoothing": EPS}, "aot": {"label_smoothing": EPS},
           "discopop": {"tau": 0.3}, "bco_pair": {"reward_shift": -0.4},
           "cpo": {"nll_coef": 0.7}, "simpo": {"margin": 0.3},
           "alpha_po": {"margin": 0.3, "alpha": 0.2}}  # fmt: skip


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
    "alpha_po": lambda c, r, b: dpo(
        b * (1 - math.exp(c) ** -0.2) / 0.2 - b * (1 - math.exp(r) ** -0.2) / 0.2 - 0.3
    ),
    "orpo": lambda c, r, b: -c + b * dpo(log_odds(c) - log_odds(r)),
}
SCORES = {
    "reverse_kl": lambda h: h,
    "forward_kl": lambda h: -math.exp(-h),
    "js": lambda h: math.log(2 * math.exp(h) / (1 + math.exp(h))),
    "alpha": lambda h: (1 - math.exp(h) ** -0.3) / 0.3,
}


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
    assert loss.item() == pytest.approx(expected, rel=1e-12)


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
    assert lost(kind, logprob, length).loss.item() == pytest.approx(expected, rel=1e-12)
    shuffled = [logprob[0], logprob[1].flip(0), logprob[2], logprob[3].flip(0)]
    if kind == "aot_unpaired":  # which rejected answer belongs to which chosen one does not matter
        assert lost(kind, shuffled, length).loss.item() == pytest.approx(expected, rel=1e-12)


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
    assert loss.item() == pytest.approx(expected, rel=1e-12)


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
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-12, atol=0)
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


@pytest.mark.parametrize(
    "changed,sentence",
    (
        ({"chosen_logprob": ONES[None]}, r"chosen_logprob must be \(B,\), got \(1, 3\)"),
        ({"rejected_logprob": PAIR}, r"rejected_logprob must be \(3,\) on cpu, got"),
        ({"ref_chosen_logprob": None}, "ref_chosen_logprob must be given with kind 'si"),
        ({"kind": "cpo"}, "ref_chosen_logprob must not be given with kind 'cpo'"),
        ({"kind": "ipo"}, "chosen_length must be given with kind 'ipo'"),
        ({"chosen_length": ONES}, "chosen_length must not be given with kind 'sigmoid'"),
        ({"kind": "dpo"}, "kind must be one of sigmoid, .*, got 'dpo'"),
        ({"divergence": "tv"}, "divergence must be one of reverse_kl, .*, got 'tv'"),
        ({"kind": "apo_zero", "divergence": "js"}, "has reverse_kl alone, got"),
        ({"beta": 0.0}, "beta must be greater than 0, got 0.0"),
        ({"tau": 1.0}, "unknown coefficient 'tau' of kind 'sigmoid', expected one of b"),
        ({"kind": "robust", "label_smoothing": 0.5}, "label_smoothing must be less than"),
        ({"kind": "exo_pair", "label_smoothing": 0}, "must be greater than 0, got 0.0"),
        ({"kind": "aot", "weight": ONES}, "weight must not be given with kind 'aot'"),
        ({"mask": ONES}, "mask must be bool"),
        ({"chosen_logprob": NAN * ONES}, "chosen_logprob must be finite where mask is T"),
    ),
)
def test_bad_input_ends_in_one_sentence(changed, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        pair_call(**changed)
