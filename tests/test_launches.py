# SPDX-License-Identifier: Apache-2.0
"""How many kernels a policy loss launches on a GPU, forward and backward: Triton's and torch's own.

Of tensors on a CPU: each call that would compute something there is a launch on a GPU.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import rlkern

interpreter = pytest.importorskip("triton.runtime.interpreter")

NO_LAUNCH = ("empty", "new_empty", "empty_like", "lift_fresh", "detach")
COUNT = ["_to_copy", "sum", "clamp", "div"]  # mask, tokens, at least 1, weights
LENGTHS = ["_to_copy", "sum", "linalg_vector_norm", "clamp", "div"]
SEQUENCES = ["_to_copy", "sum", "linalg_vector_norm", "mul", "clamp", "div"]
LOSS = ["policy_loss_kernel", "sum_statistics"]
OF_SEQUENCES = [
    "token_logprob_forward", "sequence_objective_kernel", "sum_statistics",
    "token_logprob_backward_kernel",
]  # fmt: skip
# (arguments, what makes the weights, the kernels of the forward); the backward has one.
CALLS = {
    "a mean over answers": ({}, SEQUENCES, LOSS),
    "an advantage for each answer": ({"advantage": torch.ones(2)}, [*SEQUENCES, "clone"], LOSS),
    "over the logits": ({"inplace": True}, SEQUENCES, LOSS),
    "a mean over tokens": ({"algorithm": "dapo"}, COUNT, LOSS),
    "a constant for each answer": ({"algorithm": "dr_grpo"}, LENGTHS, LOSS),
    "weights given": ({"weight": torch.full((2, 3), 0.5)}, ["scalar_tensor", "where"], LOSS),
    "a temperature": ({"algorithm": "dapo", "temperature": 0.7}, [*COUNT, "full"], LOSS),
    "a ratio of sequences": ({"algorithm": "gspo"}, SEQUENCES, OF_SEQUENCES),
}


class Launches(TorchDispatchMode):
    """Notes what computes something inside the with block."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.torch, self.triton = [], []
        execute = interpreter.GridExecutor.__call__

        def noting(executor, *args, **kwargs):
            self.triton.append(executor.fn.__name__)
            with _disable_current_modes():
                return execute(executor, *args, **kwargs)

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", noting)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        if not (function.is_view or name in NO_LAUNCH or name.startswith("rlkern::")):
            self.torch.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("call", CALLS)
def test_a_loss_launches_its_kernels_and_what_makes_the_weights(call, monkeypatch):
    monkeypatch.delenv("RLKERN_CHECK_VALUES")  # they read what they check
    arguments, weights, kernels = CALLS[call]
    leaf = torch.randn(2, 3, 21).requires_grad_()
    logits = leaf * 1 if arguments.get("inplace") else leaf
    token, mask = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
    rows = {"advantage": torch.ones(2, 3), "old_logprob": torch.full((2, 3), -3.0)}
    one = torch.ones(())
    launches = Launches(monkeypatch)
    with rlkern.use_backend("triton"), launches:
        out = rlkern.policy_loss(logits, token, mask=mask, **{**rows, **arguments})
        forward = list(launches.torch), list(launches.triton)
        torch.autograd.grad(out.loss, logits, one)
    assert forward == (weights, kernels)
    assert launches.torch == weights and launches.triton == [*kernels, "scale_kernel"]
