# SPDX-License-Identifier: Apache-2.0
"""Tokens that the sampler or the trainer reports no probability of: not corrected, not judged by."""

import math

import pytest
import torch

import rlkern
from rlkern.ops.rollout_correction import CORRECTIONS

NAN = math.nan
KINDS = tuple(CORRECTIONS)
UNKNOWN = {
    "truncate": ((0.0, 2.0), [[2.0, 1.0, 0.5], [1.0, 0.25, 0.0], [1.0, 0.0, 0.0]]),
    "mask": ((2.0, 5.0), [[4.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    "sequence_truncate": ((0.0, 1.5), [[1.5, 1.0, 1.5], [1.0, 0.25, 0.0], [1.0, 0.0, 0.0]]),
    "sequence_mask": ((1.5, 3.0), [[2.0, 1.0, 2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    "geometric_mask": ((1.4, 1.5), [[4.0, 1.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    "binary_kl_mask": ((0.0, 0.1), [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    "total_variation_mask": ((0.0, 0.1), [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
}


def unknown_batch(unknown):
    """Returns (old, rollout, mask) whose unknown tokens are NaN by the sampler, trainer or both."""
    w = torch.tensor([[4.0, NAN, 0.5], [NAN, 0.25, 1.0], [NAN, 1.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()
    old = torch.full_like(w, -1.0)
    rollout = old - w.log()
    if unknown != "sampler":
        old = torch.where(w.isnan(), NAN, old)
    if unknown == "trainer":
        rollout = rollout.nan_to_num(-1.0)
    return old, rollout, mask


@pytest.mark.parametrize("unknown", ("sampler", "trainer", "both"))
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_token_is_not_corrected_and_judges_no_answer(kind, unknown):
    (low, high), expected = UNKNOWN[kind]
    got = rlkern.rollout_correction(*unknown_batch(unknown), kind=kind, low=low, high=high)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("unknown", ("sampler", "trainer", "both"))
@pytest.mark.parametrize("over", ("token", "sum", "mean", "max"))
def test_an_unknown_token_is_dropped_only_with_its_answer(over, unknown):
    rows = unknown_batch(unknown)  # k1 = −log w: −1.39, ?, 0.69; ?, 1.39; ?
    options = {"estimator": "k1", "over": over}
    got = rlkern.rollout_rejection(*rows, low=0.5, high=1.5, **options).tolist()
    inside = {"token": [[False, True, True], [True, True, False]],
              "max": [[False] * 3, [True, True, False]],
              "sum": [[False] * 3, [True, True, False]],
              "mean": [[False] * 3, [True, True, False]]}[over]  # fmt: skip
    assert got == [*inside, [True, False, False]]
    got = rlkern.rollout_rejection(*rows, low=-1.5, high=1.0, **options).tolist()
    last = [True, False, False] if over == "token" else [False] * 3
    assert got == [[True] * 3, last, [True, False, False]]


def test_an_unknown_token_leaves_its_answers_distance_as_it_is():
    old, rollout, mask = unknown_batch("sampler")  # −log w on average: −0.35, 1.39, nothing
    bad = -torch.ones_like(old)
    kept = rlkern.off_policy_sequence_mask(old, rollout, bad, mask, threshold=0.7)
    assert kept.tolist() == [[True] * 3, [False] * 3, [True, False, False]]


def test_a_normalized_correction_has_mean_one_over_the_counted_tokens():
    correction = torch.tensor([[1.0, 3.0, NAN]])
    got = rlkern.batch_normalized(correction, torch.tensor([[True, True, False]]))
    assert got.tolist() == [[0.5, 1.5, 0.0]]
    nothing = rlkern.batch_normalized(correction, torch.zeros(1, 3, dtype=torch.bool))
    assert nothing.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_each_token_is_multiplied_by_the_bounded_ratio(kind, backend):
    """A token's loss, seen by itself: all the weight is on it."""
    case = Case("alone", B=3, T=3, V=11, mask="full")
    batch = make_batch(case, torch.float32)
    mask, old = batch.mask, batch.old_logprob
    rollout = old - torch.tensor([[0.1, 0.1, 0.1], [1.0, 1.0, 1.0], [0.2, -0.1, 0.4]])
    bounds = {"low": 0.8, "high": 1.5}
    factor = rlkern.rollout_correction(old, rollout, mask, kind=kind, **bounds)

    def losses(**options):
        """Returns the loss and the gradient's norm with all the weight on each token in turn."""
        found = []
        for at in range(3):  # a token of each sequence
            leaf, weight = batch.logits.clone().requires_grad_(), torch.zeros(mask.shape)
            weight[at, at] = 1.0
            out = rlkern.policy_loss(
                leaf, batch.token, batch.advantage, mask, old_logprob=old, weight=weight,
                algorithm="ppo", **options,
            )  # fmt: skip
            out.loss.backward()
            found.append((out.loss.detach(), leaf.grad.norm()))
        return torch.tensor(found)

    with rlkern.use_backend(backend):
        plain, corrected = losses(), losses(correction=factor)
    assert (plain[:, 0].abs() > 1e-3).all() and plain[:, 1].any()  # some are clipped
    expected = factor.diagonal()
    torch.testing.assert_close(corrected, plain * expected[:, None], rtol=1e-5, atol=0)
    assert expected.unique().numel() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_correction_multiplies_what_the_loss_makes_of_each_token(kind):
    batch = make_batch(Case("correction", B=3, T=4, V=11), torch.float64)
    batch = batch.to("cpu", torch.float64)
    rollout = batch.old_logprob + 0.2 * torch.sin(40 * batch.ref_logprob)
    factor = rlkern.rollout_correction(batch.old_logprob, rollout, batch.mask, kind=kind, high=1.5)
    weight = rlkern.aggregate.token_weight(batch.mask).double()

    def gradient(**options):
        leaf = batch.logits.clone().requires_grad_()
        out = rlkern.policy_loss(
            leaf, batch.token, batch.advantage, batch.mask, old_logprob=batch.old_logprob,
            algorithm="ppo", **options,
        )  # fmt: skip
        out.loss.backward()
        return leaf.grad

    got = gradient(correction=factor, weight=weight)
    torch.testing.assert_close(got, gradient(weight=weight * factor), rtol=1e-10, atol=1e-14)
    assert factor[batch.mask].unique().numel() > 1


@pytest.mark.parametrize(
    "function,options",
    ((rlkern.rollout_correction, {"kind": "none"}), (rlkern.rollout_rejection, {"over": "all"}),
     (rlkern.rollout_rejection, {"estimator": "k4"})),
)  # fmt: skip
def test_an_unknown_choice_is_refused_with_those_there_are(function, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{function.__name__}: {name} must be one of .*{value}"):
        function(OLD, ROLLOUT, MASK, **options)


@pytest.mark.parametrize("name", ("old_logprob", "rollout_logprob"))
def test_bad_log_probabilities_are_refused_by_name(name):
    good = {"old_logprob": OLD, "rollout_logprob": ROLLOUT, "mask": MASK}
    for value, error, sentence in (
        (OLD.long(), TypeError, "must be float16 or bfloat16 or float32 or float64, got"),
        (OLD * math.inf, ValueError, "must be finite where mask is True, got NaN or inf"),
        (OLD[:1], ValueError, r"must be \(\d, 3\) on cpu, got"),
    ):
        with pytest.raises(error, match=sentence):
            rlkern.rollout_correction(**{**good, name: value})
    with pytest.raises(ValueError, match=r"must be \(B, T\), or \(N,\) with cu_seqlens, got"):
        rlkern.rollout_correction(*(x[0] for x in good.values()))
