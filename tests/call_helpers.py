# SPDX-License-Identifier: Apache-2.0
"""Calls of the logits path that are fine, to be spoiled in one argument."""

import math

import torch

import rlkern
from rlkern.testing.cases import Case, make_batch

B, T, V = 2, 3, 7
ROWS, NAN = (B, T), math.nan
one = torch.ones(ROWS)
integers = torch.ones(ROWS, dtype=torch.int64)
yes = torch.ones(ROWS, dtype=torch.bool)


def good():
    """Returns arguments that every operation takes, by name."""
    batch = make_batch(Case("bad input", B=B, T=T, V=V), torch.float32)
    vectors = {"old_logprob": batch.old_logprob, "ref_logprob": batch.ref_logprob}
    return {**{n: getattr(batch, n) for n in ("logits", "token", "advantage", "mask")}, **vectors}


def policy_loss(**changed):
    rows = {**good(), **changed}
    rows["logits"] = rows["logits"] * 1 if torch.is_tensor(rows["logits"]) else rows["logits"]
    return rlkern.policy_loss(**rows)


def token_logprob(**changed):
    rows = {name: x for name, x in good().items() if name in ("logits", "token", "mask")}
    return rlkern.token_logprob(**{**rows, **changed})


def token_objective(**changed):
    rows = {name: x for name, x in good().items() if name not in ("logits", "token")}
    return rlkern.token_objective(**{"logprob": rows["ref_logprob"], **rows, **changed})
