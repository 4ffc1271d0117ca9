# SPDX-License-Identifier: Apache-2.0
"""What is said where a person most likely made a known mistake."""

import sys
import warnings
from types import ModuleType

import pytest
import torch

import rlkern
from rlkern import backends

B, T, V, H = 2, 3, 7, 5


def batch():
    token = torch.randint(0, V, (B, T))
    return token, torch.ones(B), torch.ones(B, T, dtype=torch.bool)


@pytest.mark.parametrize("linear", [False, True], ids=["logits", "hidden"])
@pytest.mark.parametrize("loss", [False, True], ids=["token_logprob", "policy_loss"])
def test_scores_of_whole_rows_get_the_hint_that_nothing_is_shifted(linear, loss):
    token, advantage, mask = batch()
    rows = (torch.randn(B, T + 1, H), torch.randn(V, H)) if linear else (torch.randn(B, T + 1, V),)
    name = f"{'linear_' if linear else ''}{'policy_loss' if loss else 'token_logprob'}"
    rest = (token, advantage, mask) if loss else (token,)
    what = "hidden" if linear else "logits"
    with pytest.raises(ValueError, match=rf"{what}\[:, :-1\] score token\[:, 1:\]"):
        getattr(rlkern, name)(*rows, *rest)
    with pytest.raises(ValueError, match=r"got \(2, 3\)[^(]*$"):  # another mistake
        shorter = (rows[0][:, :2], *rows[1:])
        getattr(rlkern, name)(*shorter, *rest)


@pytest.mark.parametrize("loss", [False, True], ids=["token_logprob", "policy_loss"])
def test_a_second_backward_of_overwritten_logits_says_what_to_do(loss):
    token, advantage, mask = batch()
    logits = torch.randn(B, T, V, requires_grad=True) * 1.0
    if loss:
        found = rlkern.policy_loss(logits, token, advantage, mask, inplace=True).loss
    else:
        found = rlkern.token_logprob(logits, token, inplace=True).logprob.sum()
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward needs inplace=False"):
        found.backward()


@pytest.fixture
def without_the_extension(monkeypatch):
    """The backend of the CPU as it is where nothing was compiled."""
    module = ModuleType("rlkern.backends.cpu")
    module.unavailable = lambda: "the extension was not built"
    module.unsupported = lambda stem, device, dtype: None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(backends, "_chosen", None)
    remembered = (backends._resolve, backends._load, backends._say_what_is_missing)
    for each in remembered:
        each.cache_clear()
    yield
    for each in remembered:
        each.cache_clear()


def test_eager_for_want_of_the_extension_is_said_once(without_the_extension):
    token, advantage, mask = batch()
    with pytest.warns(UserWarning, match="because backend cpu cannot serve: the extension was"):
        rlkern.token_logprob(torch.randn(B, T, V), token)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rlkern.token_logprob(torch.randn(B, T, V), token)
        rlkern.policy_loss(torch.randn(B, T, V), token, advantage, mask)


def test_eager_that_was_asked_for_is_not_said(without_the_extension):
    with warnings.catch_warnings(), rlkern.use_backend("eager"):
        warnings.simplefilter("error")
        rlkern.token_logprob(torch.randn(B, T, V), batch()[0])


def test_a_prompt_shows_the_table_of_explain_as_it_is():
    assert repr(rlkern.explain()) == str(rlkern.explain())
    assert "\n" in repr(rlkern.explain())
