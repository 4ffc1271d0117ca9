# SPDX-License-Identifier: Apache-2.0
"""The fused linear as the dispatcher and torch.compile see it."""

from dataclasses import replace

import pytest
import torch
from linear_helpers import PATHS, problem, same_bits
from torch._dynamo.testing import CompileCounterWithBackend

import rlkern
from rlkern.backends import _load
from rlkern.backends.eager.token_objective import Rows
from rlkern.testing.cases import Case

BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
PLAIN = Case("plain", B=3, T=5, V=37)
EVERY_PATH = pytest.mark.parametrize("path", PATHS)
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


def operator_calls(level):
    """Returns arguments of the three operators by name."""
    task = problem(replace(PLAIN, terms=True, mask="full", keep="narrow", temperature="rows"))
    batch = task.batch
    hidden, *head = task.leaves().values()
    head = (hidden.detach().flatten(0, 1).requires_grad_(), *head, 0.5)
    softmax = (1 / batch.temperature.flatten(), 2.0, batch.keep.flatten(0, 1))
    token, mask = batch.token.flatten(), torch.arange(15) % 4 != 1
    call = (*head, token, mask, *softmax, 4)
    with torch.no_grad():
        logprob, *statistics, _ = torch.ops.rlkern.linear_token_logprob(*call)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in call]
    optional = (getattr(batch, name) for name in Rows._fields[2:])
    rows = [batch.advantage, mask.reshape(3, 5) / 7, *optional]
    numbers = [0.2, 0.28, 0.0, 0.0, 0.3, 0.2, -0.5, 0.4, 0.1]
    numbers = torch.tensor(numbers, dtype=torch.float64)
    objective = (None, "ppo_clip", level, "k3", numbers)
    wants = [True, False, True, True, True]
    return {
        "linear_token_logprob": call,
        "linear_token_logprob_backward": (*plain, *statistics, logprob, None, logprob, wants),
        "linear_policy_loss": (*head, batch.token, *rows, *softmax, *objective, 4, [True] * 5),
    }


@EVERY_BACKEND
@pytest.mark.parametrize("level", ("token", "sequence"))
@pytest.mark.parametrize("name", operator_calls("token"))
def test_the_operator_passes_opcheck(backend, level, name):
    with rlkern.use_backend(backend):
        operator = getattr(torch.ops.rlkern, name).default
        torch.library.opcheck(operator, operator_calls(level)[name])


@EVERY_PATH
@pytest.mark.parametrize("algorithm", ("grpo", "gspo"))
def test_a_compiled_call_has_the_bits_of_the_plain_one_whatever_the_shape(path, algorithm):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def run(task, leaves, **options):
        return PATHS[path][0](task, leaves, wave=5, **options)

    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for B, T, clip in ((2, 3, 0.2), (3, 4, 0.3), (5, 7, 0.1)):
        case = Case("compiled", B=B, T=T, V=37, temperature="rows", algorithm=algorithm)
        options = {"clip_low": clip} if path == "loss" else {}
        results = []
        for function in (run, compiled):
            task = problem(case)
            leaves = task.leaves()
            out = function(task, leaves, **options)
            out["loss"].backward()
            results.append({**out, **{n: x.grad for n, x in leaves.items()}})
        assert same_bits(*results)
    # One graph for the first shape, one for every other.
    assert counter.frame_count <= 2
