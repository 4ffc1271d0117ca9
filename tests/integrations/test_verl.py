# SPDX-License-Identifier: Apache-2.0
"""verl's functions with rlkern in their place give what they gave."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("verl")

from verl.trainer.ppo import core_algos  # noqa: E402
from verl.utils.experimental.torch_functional import FusedLinearForPPO  # noqa: E402

from rlkern import integrations  # noqa: E402
from rlkern.integrations import _patch  # noqa: E402


@pytest.fixture(autouse=True)
def unpatched():
    """Undoes what importing verl did; each test patches where it wants to."""
    if "verl" in _patch._active:
        integrations.unpatch("verl")


def batch():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 16, generator=generator)
    weight = torch.randn(40, 16, generator=generator)
    return hidden, weight, torch.randint(40, (2, 5), generator=generator)


def scored(temperature: float):
    """Returns (log π, entropy, both gradients) of verl's fused head."""
    hidden, weight, token = batch()
    hidden.requires_grad_(), weight.requires_grad_()
    logprob, entropy = FusedLinearForPPO().forward(hidden, weight, token, temperature)
    (logprob.square().sum() + 0.3 * entropy.sum()).backward()
    return logprob.detach(), entropy.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_fused_head_gives_the_same_numbers_and_gradients(temperature):
    theirs = scored(temperature)
    with integrations.patch("verl"):
        ours = scored(temperature)
        (path,) = [p for p in integrations.status()[1].calls if p.endswith("ForPPO.forward")]
        assert integrations.status()[1].calls[path] == 1
    for mine, other in zip(ours, theirs):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma,lam", [(1.0, 1.0), (0.99, 0.95)])
def test_advantages_and_returns_are_the_same_where_tokens_count(gamma, lam):
    generator = torch.Generator().manual_seed(1)
    reward, value = torch.randn(2, 3, 7, generator=generator)
    mask = (torch.rand(3, 7, generator=generator) < 0.7).float()  # with holes, as tools leave them
    mask[:, 0] = 1
    arguments = (reward * mask, value, mask, gamma, lam)
    theirs = core_algos.compute_gae_advantage_return(*arguments)
    with integrations.patch("verl"):
        ours = core_algos.compute_gae_advantage_return(*arguments)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine[mask != 0], other[mask != 0], rtol=1e-5, atol=1e-5)


def test_importing_verl_is_enough():
    code = (
        "import verl; from rlkern import integrations; from rlkern.integrations import verl_plugin;"
        " assert verl_plugin.failure is None, verl_plugin.failure;"
        " assert integrations.status()[1].calls is not None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rlkern serves verl.utils" in done.stderr


def test_a_renamed_argument_leaves_verl_alone_and_is_said(monkeypatch):
    def forward(self, states, vocab_weights, input_ids, temperature=1.0): ...

    monkeypatch.setattr(FusedLinearForPPO, "forward", forward)
    with pytest.raises(integrations.PatchError, match=r"hidden_states, vocab.*got \(self, states"):
        integrations.patch("verl")
    assert FusedLinearForPPO.forward is forward
    assert "states" in str(integrations.refusal("verl"))
