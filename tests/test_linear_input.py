# SPDX-License-Identifier: Apache-2.0
"""Hidden states and heads that do not fit are refused in one sentence that names them."""

import re

import pytest
import torch
from linear_helpers import problem
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor, init_device_mesh

import rlkern
from rlkern import Lora
from rlkern.testing.cases import Case

TASK = problem(Case("input", B=2, T=3, V=7, mask="full"), H=4, R=2)
S = TASK.sources
NAN = float("nan")


def lora(**changed):
    return {"lora": Lora(S["lora_a"], S["lora_b"], 0.5)._replace(**changed)}


# {what is wrong: (changed arguments, error, sentence after the name of the operation)}
WRONG = {
    "no tensor": ({"hidden": [1.0]}, TypeError, "hidden must be float16 or .* got list"),
    "integers": ({"hidden": S["hidden"].long()}, TypeError, "hidden must be float16 or .* int64"),
    "one dimension": ({"hidden": torch.ones(4)}, ValueError, "hidden must be (..., 4) on cpu as "
                      "weight (7, 4) takes it, got (4,) float32 on cpu"),
    "another width": ({"hidden": torch.ones(2, 3, 5)}, ValueError, "hidden must be (..., 4) on cpu "
                      "as weight (7, 4) takes it, got (2, 3, 5) float32 on cpu"),
    "a wider dtype": ({"hidden": S["hidden"].double()}, TypeError, "hidden must be torch.float32 "
                      "like weight, or narrower, got torch.float64"),
    "halves of two kinds": ({"hidden": S["hidden"].half(), "weight": S["weight"].bfloat16()},
                            TypeError, "hidden must be torch.bfloat16 like weight, or narrower"),
    "a flat head": ({"weight": torch.ones(28)}, ValueError, "weight must be (V, H) with V > 0"),
    "an empty head": ({"weight": torch.ones(0, 4)}, ValueError, "weight must be (V, H) with V > 0"),
    "a short bias": ({"bias": torch.ones(6)}, ValueError, "bias must be (7,) on cpu, got (6,)"),
    "a bias in float64": ({"bias": torch.ones(7).double()}, TypeError, "bias must be float32"),
    "a short token": ({"token": TASK.batch.token[:, :2]}, ValueError, "token must be (2, 3)"),
    "an unknown token": ({"token": TASK.batch.token + 7}, ValueError, "token must be in [0, 7)"),
    "no rows": ({"wave": 0}, ValueError, "wave must be at least 1 row, got 0"),
    "parts of rows": ({"wave": 2.5}, ValueError, "wave must be at least 1 row, got 2.5"),
    "a lora of another head": (lora(b=torch.ones(6, 2)), ValueError, "lora.b must be (7, 2)"),
    "a lora of another width": (lora(a=torch.ones(2, 5)), ValueError, "lora.a must be (2, 4)"),
    "a lora of two ranks": (lora(a=torch.ones(3, 4)), ValueError, "lora.a must be (2, 4)"),
    "a lora of another dtype": (lora(b=S["lora_b"].half()), TypeError, "lora.b must be float32"),
    "a flat lora": (lora(b=torch.ones(7)), ValueError, "lora.b must be (7, 7)"),
    "a lora of a number": (lora(b=torch.ones(())), ValueError, "lora.b must be (7,)"),
    "a lora of no number": (lora(scale=NAN), ValueError, "lora.scale must be finite"),
    "a lora that is none": ({"lora": (S["lora_a"], S["lora_b"])}, TypeError, "lora must be"),
    "no scale": ({"logit_scale": 0.0}, ValueError, "logit_scale must be greater than 0, got 0.0"),
    "no softcap": ({"softcap": -1.0}, ValueError, "softcap must be greater than 0 or None"),
    "no temperature": ({"temperature": 0.0}, ValueError, "temperature must be"),
    "a group of no processes": ({"group": "tp"}, TypeError, "group must be a ProcessGroup"),
}  # fmt: skip


def scores(**changed):
    given = {"hidden": S["hidden"], "weight": S["weight"], "token": TASK.batch.token, **changed}
    return rlkern.linear_token_logprob(**given)


def loss(**changed):
    batch = TASK.batch
    given = {"hidden": S["hidden"], "weight": S["weight"], "token": batch.token, **changed}
    given["head_weight"] = given.pop("weight")
    return rlkern.linear_policy_loss(**given, advantage=batch.advantage, mask=batch.mask)


OPERATIONS = {"linear_token_logprob": scores, "linear_policy_loss": loss}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_named_in_a_sentence(operation, wrong):
    changed, error, sentence = WRONG[wrong]
    pattern = re.escape(sentence).replace(r"\.\*", ".*")
    with pytest.raises(error, match=f"^{operation}: {pattern}") as raised:
        OPERATIONS[operation](**changed)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_tensor_that_is_spread_over_ranks_is_refused(operation, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        spread = {n: distribute_tensor(x, mesh, [Replicate()]) for n, x in S.items()}
        assert isinstance(spread["weight"], DTensor)
        head = {"lora": Lora(spread["lora_a"], S["lora_b"], 0.5)}, {"bias": spread["bias"]}
        for changed in ({"hidden": spread["hidden"]}, {"weight": spread["weight"]}, *head):
            with pytest.raises(TypeError, match="must be a plain tensor, got a DTensor .* spread"):
                OPERATIONS[operation](**changed)
    finally:
        torch.distributed.destroy_process_group()
