# SPDX-License-Identifier: Apache-2.0
"""The operations as the dispatcher sees them: schemas, fakes, autograd registration."""

from pathlib import Path

import pytest
import torch

import rlkern
from rlkern.backends import _load
from rlkern.backends.eager.token_objective import Rows
from rlkern.testing.cases import Case, make_batch

_ = rlkern.policy_loss  # registers the operators, which the calls below name as torch does
BACKENDS = [name for name in ("eager", "cpu") if _load(name)[1] is None]
NUMBERS = torch.tensor([0.2, 0.28, 0.0, 0.0, 0.3, 0.2, -0.5, 0.4, 0.1], dtype=torch.float64)


def logits_calls(keep, packed, level):
    """Returns arguments for every operation of the logits path, by its name."""
    shape = {"B": 1, "T": 6, "packed": True, "mask": "holes"} if packed else {"B": 2, "T": 3}
    batch = make_batch(
        Case("opcheck", V=7, temperature="rows", keep=keep, correction=True, terms=True, **shape),
        torch.float32,
    )

    def grid(x):
        return x if x is None or not packed else x.unsqueeze(0)

    logits, token, mask, inv_temperature = (
        grid(x) for x in (batch.logits.clone(), batch.token, batch.mask, 1 / batch.temperature)
    )
    softmax = (inv_temperature, 2.0 if keep != "none" else 0.0, grid(batch.keep))
    optional = (getattr(batch, name) for name in Rows._fields[2:])
    rows = [grid(x) for x in (batch.advantage, batch.mask / 6, *optional)]
    objective = (batch.cu_seqlens, "ppo_clip", level, "k3", NUMBERS)
    _, entropy, *sums, _ = torch.ops.rlkern.token_logprob(logits, token, mask, *softmax)
    saved = (token, mask, *softmax, entropy, *sums, torch.ones_like(entropy), None, entropy)
    leaf, logprob = logits.clone().requires_grad_(), rows[3].clone().requires_grad_()
    return {
        "token_logprob": (leaf, token, mask, *softmax),
        "token_logprob_backward": (logits, *saved),
        "token_logprob_backward_": (logits, *saved),
        "policy_loss": (leaf, token, *rows, *softmax, *objective, True),
        "policy_loss_": (logits, token, *rows, *softmax, *objective),
        "token_objective": (logprob, entropy.clone().requires_grad_(), *rows, *objective),
    }


def other_calls():
    scan = [torch.rand(2, 4).requires_grad_() for _ in range(2)]
    rates = torch.tensor([0.9, 0.8], dtype=torch.float64)
    return {
        "gae": (*torch.rand(2, 2, 4), torch.ones(2, 4) > 0, rates, None, None, 1),
        "scale_": (torch.rand(2, 3), torch.tensor(0.3)),
        "reverse_scan": (*scan, None),
    }


VARIANTS = {"padded": ("none", False, "token"), "sequences": ("none", False, "sequence"),
            "kept and packed": ("narrow", True, "sequence")}  # fmt: skip
NAMES = [*logits_calls(*VARIANTS["padded"]), *other_calls()]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_operation_passes_opcheck(backend, name, variant):
    with rlkern.use_backend(backend):
        calls = {**logits_calls(*VARIANTS[variant]), **other_calls()}
        torch.library.opcheck(getattr(torch.ops.rlkern, name).default, calls[name])


def test_every_registered_operation_is_checked_here_or_in_the_tests_of_its_topic():
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    text = "".join(text for text in texts if "opcheck(" in text)
    registered = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("rlkern::")}
    names = {name.removeprefix("rlkern::") for name in registered}
    assert names >= set(NAMES)
    assert not {
        n for n in names if n not in NAMES and f'"{n}"' not in text and f".{n}." not in text
    }
