# SPDX-License-Identifier: Apache-2.0
"""What crosses into C++ is checked there: a wrong tensor is an error and never a wild write."""

import subprocess
import sys

import pytest
import torch

from rlkern.backends import _load
from rlkern.backends.eager.token_logprob import Scored, Softmax
from rlkern.backends.eager.token_objective import Objective, Rows

NATIVE, REASON = _load("cpu")
pytestmark = pytest.mark.skipif(REASON is not None, reason="the C++ extension is not built")
X, MASK, TOKEN = torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.zeros(2, 3).long()
LOGITS = torch.zeros(2, 3, 5)


def scan(**changed):
    good = {"bias": X, "decay": X, "cu_seqlens": None, "x": torch.empty(2, 3), "threads": 1}
    NATIVE._C.reverse_scan(**{**good, **changed})


def score(**changed):
    out = Scored(*(torch.empty(2, 3) for _ in Scored._fields))
    good = {"logits": LOGITS, "token": TOKEN, "mask": MASK, "softmax": Softmax(), "out": out}
    NATIVE._C.token_logprob(**{**good, **changed}, threads=1)


def lose(**changed):
    numbers = {"gate": 0, "level": 0, "kl": 0, "gate_coef": (0.0,) * 4, "kl_coef": 0.0}
    names = {name: changed.pop(name) for name in tuple(numbers) if name in changed}
    numbers |= {"entropy_coef": 0.0, "log_ratio_min": 0.0, "log_ratio_max": 0.0, "kl_max": 0.0}
    objective = NATIVE._C.Objective(**{**numbers, **names})
    good = {"logits": LOGITS, "token": TOKEN, "rows": Rows(X, X), "softmax": Softmax()}
    good |= {"grad_logits": None, "loss": torch.empty(()), "metrics": torch.empty(15)}
    NATIVE._C.policy_loss(**{**good, **changed}, objective=objective, threads=1)


@pytest.mark.parametrize(
    "call,changed,sentence",
    (
        (scan, {"decay": X.double()}, "decay must be 6 contiguous elements of float32 on the CPU,"
         " got 6 elements of float64"),
        (scan, {"x": torch.empty(5)}, "x must be 6 .*, got 5 elements of float32"),
        (scan, {"decay": torch.zeros(3, 2).t()}, "decay must be .*, got 6 .*, not contiguous"),
        (scan, {"decay": torch.zeros(2, 3, device="meta")}, "decay must be|[Mm]eta"),
        (scan, {"x": None}, "x must be 6 contiguous elements of float32 on the CPU, got None"),
        (scan, {"x": [0.0] * 6}, "incompatible function arguments"),
        (scan, {"bias": torch.zeros(6)}, r"without cu_seqlens steps must be \(B, T\)"),
        (scan, {"cu_seqlens": torch.tensor([0, 7])}, "cu_seqlens must rise from 0 to the number"),
        (score, {"token": MASK, "mask": TOKEN}, "(token|mask) must be 6 contiguous elements"),
        (score, {"logits": TOKEN[..., None]}, r"logits must be \(B, T, V\) floats on the CPU"),
        (score, {"logits": torch.zeros(2, 5, 3).mT}, "logits must be .*side by side in each row"),
        (score, {"softmax": Softmax(keep=X)}, "keep must be 6 contiguous elements of int64"),
        (score, {"softmax": Rows(X, X)}, "has no attribute 'inv_temperature'"),
        (lose, {"rows": Rows(X, X.double())}, "weight must be 6 contiguous elements of float32"),
        (lose, {"rows": Rows(X, "weight")}, "weight must be a tensor or None"),
        (lose, {"grad_logits": LOGITS.double()}, "grad_logits must be of the logits' shape"),
        (lose, {"metrics": torch.empty(13)}, "metrics must be 15 contiguous elements"),
        (lose, {"gate": 15}, r"gate must be in \[0, 14\], got 15"),
    ),
)  # fmt: skip
def test_a_wrong_argument_is_named(call, changed, sentence):
    call()
    with pytest.raises((TypeError, ValueError, AttributeError, RuntimeError), match=sentence):
        call(**changed)


def test_arguments_have_names_at_the_call():
    with pytest.raises(TypeError, match="incompatible function arguments"):
        NATIVE._C.reverse_scan(X, X, None, X, 1)


def test_an_objective_is_numbered_once():
    objective = Objective("ppo_clip", "token", "k3", (0.2, 0.2, 0.0, 0.0), 0.0, 0.0)
    again = Objective(*objective)
    assert NATIVE.arguments.numbered(objective) is NATIVE.arguments.numbered(again)


WITHOUT_THE_EXCHANGE = """
import torch
if {hide}: del torch.Tensor.__dlpack_c_exchange_api__
import rlkern
from rlkern.backends import _load
native = _load("cpu")[0]
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    leaf = torch.randn(2, 3, 50).to(dtype)[:, 1:].requires_grad_()
    rows = torch.randn(2, 2)
    out = rlkern.policy_loss(leaf, torch.randint(50, (2, 2)), rows, rows > -1)
    out.loss.backward()
    print(out.loss.item(), leaf.grad.double().square().sum().item())
try:
    native.reverse_scan(rows, rows.double())
except TypeError as error:
    print(error)
"""


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange"
)
def test_a_torch_that_describes_no_tensors_to_c_is_asked_through_python():
    said = [
        subprocess.run(
            [sys.executable, "-c", WITHOUT_THE_EXCHANGE.format(hide=hide)],
            capture_output=True, text=True, check=True,
        ).stdout
        for hide in (False, True)
    ]  # fmt: skip
    assert said[0] == said[1] and "decay must be 4 contiguous elements of float32" in said[0]
