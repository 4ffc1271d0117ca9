# SPDX-License-Identifier: Apache-2.0
"""Bad input is refused in one sentence that names it, before anything is written."""

import math
import re

import pytest
import torch
from call_helpers import (
    NAN,
    ROWS,
    B,
    T,
    V,
    good,
    integers,
    one,
    policy_loss,
    token_logprob,
    token_objective,
    yes,
)

import rlkern
from rlkern import aggregate

FLOATS = "float16 or bfloat16 or float32 or float64"


def group_advantage(**changed):
    rows = {"reward": torch.arange(4.0), "group": torch.tensor([0, 0, 1, 1])}
    return rlkern.group_advantage(**{**rows, **changed})


def reverse_scan(**changed):
    return rlkern.reverse_scan(**{"bias": torch.ones(ROWS), "decay": torch.ones(ROWS), **changed})


def gae(**changed):
    rows = {"reward": torch.ones(ROWS), "value": torch.ones(ROWS), "mask": good()["mask"]}
    return rlkern.gae(**{**rows, **changed})


def token_weight(**changed):
    return aggregate.token_weight(**{"mask": good()["mask"], **changed})


OPERATIONS = {f.__name__: f for f in (policy_loss, token_logprob, token_objective, group_advantage,
                                      reverse_scan, gae, token_weight)}  # fmt: skip
elsewhere = torch.ones(ROWS, device="meta")

SCORING = {
    "logits": [
        ([1.0], TypeError, FLOATS, "list"),
        (torch.ones(B, T, V).long(), TypeError, FLOATS, "(2, 3, 7) int64 on cpu"),
        (torch.ones(V), ValueError, "(..., V)", "(7,) float32"),
        (torch.ones(B, T, 0), ValueError, "V > 0", "(2, 3, 0)"),
        (torch.ones(B, V, T).mT, ValueError, "contiguous in their last dimension", "(21, 1, 3)"),
    ],
    "token": [
        (one, TypeError, "int64 or int32", "(2, 3) float32"),
        (integers[:, :2], ValueError, "(2, 3) on cpu", "(2, 2) int64"),
        (integers.to("meta"), ValueError, "(2, 3) on cpu", "on meta"),
        (integers * V, ValueError, "in [0, 7) where mask is True", "7"),
        (-integers, ValueError, "in [0, 7) where mask is True", "-1"),
        (None, TypeError, "int64 or int32", "NoneType"),
    ],
    "temperature": [
        (0, ValueError, "greater than 0", "0"),
        (-0.5, ValueError, "greater than 0", "-0.5"),
        (NAN, ValueError, "finite", "nan"),
        (math.inf, ValueError, "finite", "inf"),
        ("warm", TypeError, "a number", "'warm'"),
        (torch.ones(5), ValueError, "broadcast to (2, 3)", "(5,) float32"),
        (integers, TypeError, FLOATS, "int64"),
        (elsewhere, ValueError, "on cpu", "on meta"),
        (0 * one, ValueError, "positive where mask is True", "0.0"),
        (NAN * one, ValueError, "positive where mask is True", "nan"),
    ],
}  # fmt: skip
KEPT = {
    "softcap": [
        (0, ValueError, "greater than 0 or None", "0"),
        (-30.0, ValueError, "greater than 0 or None", "-30.0"),
        (NAN, ValueError, "finite", "nan"),
        ("none", TypeError, "a number", "'none'"),
        (one, TypeError, "a number", "(2, 3)"),
    ],
    "keep": [
        (one[..., None], TypeError, "int64 or int32", "(2, 3, 1) float32"),
        ([[1, 2]], TypeError, "int64 or int32", "list"),
        (integers, ValueError, "(2, 3, K) with K > 0 on cpu", "(2, 3) int64"),
        (integers[..., None][..., :0], ValueError, "K > 0", "(2, 3, 0)"),
        (integers[:, :2, None], ValueError, "(2, 3, K)", "(2, 2, 1)"),
        (integers[..., None].to("meta"), ValueError, "on cpu", "on meta"),
        (integers[..., None] * V, ValueError, "in [0, 7) or -1", "7"),
        (integers[..., None] * -2, ValueError, "in [0, 7) or -1", "-2"),
        (integers[..., None].expand(2, 3, 2), ValueError, "each id of a row once", "1 twice"),
    ],
}
MASK = {
    "mask": [
        (integers, TypeError, "bool", "(2, 3) int64 on cpu (compare it: mask != 0)"),
        (one, TypeError, "bool", "(2, 3) float32"),
        (yes[:1], ValueError, "(2, 3) on cpu", "(1, 3) bool"),
        (yes.to("meta"), ValueError, "(2, 3) on cpu", "on meta"),
    ],
}
NANS = NAN * one
OPTIONAL_VECTOR = [
    (integers, TypeError, FLOATS, "int64"),
    (0.5, TypeError, FLOATS, "float"),
    (one[:1], ValueError, "(2, 3) on cpu", "(1, 3)"),
    (elsewhere, ValueError, "(2, 3) on cpu", "on meta"),
    (NANS, ValueError, "finite where mask is True", "NaN or inf"),
    (-math.inf * one, ValueError, "finite where mask is True", "NaN or inf"),
]
WRONG_ROWS = (one[:1], ValueError, "(2, 3), (2,) or (2, 1)", "(1, 3)")
OBJECTIVE = {
    "advantage": [
        (integers, TypeError, FLOATS, "int64"),
        (one[:, :2], ValueError, "(2, 3), (2,) or (2, 1)", "(2, 2) float32"),
        (one[0], ValueError, "(2, 3), (2,) or (2, 1)", "(3,) float32"),
        (one[..., None], ValueError, "(2, 3), (2,) or (2, 1)", "(2, 3, 1)"),
        (elsewhere, ValueError, "(2, 3) on cpu", "on meta"),
        (NAN * one, ValueError, "finite where mask is True", "NaN or inf"),
    ],
    "old_logprob": [case for case in OPTIONAL_VECTOR if case[0] is not NANS],
    "ref_logprob": OPTIONAL_VECTOR,
    "correction": [*OPTIONAL_VECTOR[:2], WRONG_ROWS, *OPTIONAL_VECTOR[3:]],
    "penalty": [*OPTIONAL_VECTOR, (-one, ValueError, "not be negative where mask", "-1.0")],
    "entropy_weight": OPTIONAL_VECTOR,
    "nll_weight": OPTIONAL_VECTOR,
    "weight": OPTIONAL_VECTOR,
    "cu_seqlens": [
        (torch.tensor([0, 3, 6]), ValueError, "with flat (N,) rows", "rows (2, 3)"),
        ([0, 6], TypeError, "int64 or int32", "list"),
        (torch.tensor([0.0, 6.0]), TypeError, "int64 or int32", "float32"),
    ],
    "algorithm": [
        ("gpro", ValueError, "one of ", "'gpro'"),
        (["grpo"], TypeError, "a name or an Algorithm", "['grpo']"),
    ],
    "kl_estimator": [("k4", ValueError, "one of k1, k2, k3", "'k4'"),
                     (["k3"], ValueError, "one of k1, k2, k3", "['k3']")],
    "log_ratio_min": [(0.1, ValueError, "must not be positive", "0.1"),
                      (NAN, ValueError, "a number", "nan")],
    "log_ratio_max": [(-0.1, ValueError, "must not be negative", "-0.1"),
                      ("wide", TypeError, "a number", "'wide'")],
    "kl_max": [(-10.0, ValueError, "must not be negative", "-10.0")],
    "clip_low": [("wide", TypeError, "a number", "'wide'"), (NAN, ValueError, "finite", "nan")],
    "kl_coef": [(None, TypeError, "a number", "None"), (one, TypeError, "a number", "(2, 3)")],
    "clip_hihg": [(0.2, TypeError, "expected one of clip_low, clip_high", "unknown coefficient")],
}  # fmt: skip
SCAN = {
    "bias": [
        (integers, TypeError, "float32 or float64", "int64"),
        (one.bfloat16(), TypeError, "float32 or float64", "bfloat16"),
    ],
    "decay": [
        (one.double(), TypeError, "float32", "float64"),
        (one[:, :2], ValueError, "(2, 3) on cpu", "(2, 2)"),
        (elsewhere, ValueError, "(2, 3) on cpu", "on meta"),
    ],
}
GAE = {
    "reward": [(integers, TypeError, "float32 or float64", "int64"),
               (NAN * one, ValueError, "finite where mask is True", "NaN or inf")],
    "value": [(one.double(), TypeError, "float32", "float64"),
              (one[:1], ValueError, "(2, 3) on cpu", "(1, 3)"),
              (NAN * one, ValueError, "finite where mask is True", "NaN or inf")],
    "discount": [("a", TypeError, "a number", "'a'")],
    "gae_lambda": [(NAN, ValueError, "finite", "nan")],
}  # fmt: skip
GROUP = {
    "reward": [
        ([1.0], TypeError, "float32 or float64", "list"),
        (one, ValueError, "(N,)", "(2, 3)"),
        (torch.full((4,), math.inf), ValueError, "finite", "inf"),
    ],
    "group": [
        (torch.ones(4), TypeError, "int64 or int32", "float32"),
        (torch.arange(3), ValueError, "(4,) on cpu", "(3,) int64"),
    ],
    "kind": [("norm", ValueError, "one of normalized, centered, leave_one_out", "'norm'")],
    "ddof": [(2, ValueError, "0 or 1", "2")],
    "eps": [(-1.0, ValueError, "at least 0", "-1.0"), ("a", TypeError, "a number", "'a'")],
}
WEIGHT = {
    "mask": [(integers, TypeError, "bool", "int64"), (yes[0], ValueError, "(B, T)", "(3,) bool")],
    "mode": [("mean", ValueError, "one of token_mean, sequence_token_mean", "'mean'")],
    "count": [
        ("a", TypeError, "a number", "'a'"),
        (0, ValueError, "at least 1", "0.0"),
        (-2, ValueError, "at least 1", "-2.0"),
        (torch.ones(3), ValueError, "one number", "(3,) float32"),
    ],
    "constant": [(3, ValueError, "'sequence_token_sum'", "'token_mean'")],
    "dp_size": [
        (0, ValueError, "an integer of at least 1", "0"),
        (2.0, ValueError, "an integer of at least 1", "2.0"),
    ],
}
LOGPROB = {
    "logprob": [
        (one.bfloat16(), TypeError, "float32 or float64", "bfloat16"),
        (NAN * one, ValueError, "finite where mask is True", "NaN or inf"),
    ],
    "reduction": [("mean", ValueError, "sum or none", "'mean'")],
    "entropy": [(one.double(), TypeError, "float32", "float64"),
                (one[:1], ValueError, "(2, 3) on cpu", "(1, 3)")],
}  # fmt: skip
REFUSED = {
    "policy_loss": {**SCORING, **KEPT, **MASK, **OBJECTIVE},
    "token_logprob": {**SCORING, **KEPT, **MASK},
    "token_objective": {**LOGPROB, **MASK, **OBJECTIVE},
    "reverse_scan": SCAN,
    "gae": {**GAE, **MASK},
    "group_advantage": GROUP,
    "token_weight": WEIGHT,
}
CASES = [
    pytest.param(op, name, *case, id=f"{op}-{name}-{i}")
    for op, arguments in REFUSED.items()
    for name, cases in arguments.items()
    for i, case in enumerate(cases)
]


@pytest.mark.parametrize("op,name,value,error,expected,got", CASES)
def test_a_bad_argument_is_refused_by_name_with_what_was_expected_and_got(
    op, name, value, error, expected, got
):
    OPERATIONS[op]()  # the rest of the call is fine
    with pytest.raises(error) as caught:
        OPERATIONS[op](**{name: value})
    sentence = str(caught.value)
    assert type(caught.value) is error and "\n" not in sentence
    assert name in sentence and expected in sentence and got in sentence
    assert sentence.startswith(f"{op}: ") or re.match(r"\w+: |algorithm must", sentence)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


BAD_CALLS = [(name, value) for name, cases in {**SCORING, **KEPT, **MASK, **OBJECTIVE}.items()
             for value, *_ in cases if name != "logits"]  # fmt: skip


def test_a_refused_call_has_written_nothing_over_the_logits():
    rows = good()
    leaf = rows.pop("logits").clone().requires_grad_()
    logits, before = leaf * 1, leaf.detach().clone()
    for name, value in BAD_CALLS:
        with pytest.raises((TypeError, ValueError)):
            rlkern.policy_loss(logits, **{**rows, name: value}, inplace=True)
    assert logits.equal(before) and logits._version == 0
