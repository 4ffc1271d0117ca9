# SPDX-License-Identifier: Apache-2.0
"""verl's functions with rlkern in their place give what they gave."""

import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl")

from verl.trainer.ppo import core_algos  # noqa: E402
from verl.utils.experimental.torch_functional import FusedLinearForPPO  # noqa: E402

from rlkern import doctor, integrations  # noqa: E402
from rlkern.integrations import _patch, verl  # noqa: E402


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma,lam", [(1.0, 1.0), (0.99, 0.95)])
def test_advantages_and_returns_are_the_same_where_tokens_count(gamma, lam, dtype):
    generator = torch.Generator().manual_seed(1)
    reward, value = torch.randn(2, 3, 7, generator=generator)
    mask = (torch.rand(3, 7, generator=generator) < 0.7).float()  # with holes, as tools leave them
    mask[:, 0] = 1
    arguments = (reward * mask, value.to(dtype), mask, gamma, lam)
    theirs = core_algos.compute_gae_advantage_return(*arguments)
    with integrations.patch("verl"):
        ours = core_algos.compute_gae_advantage_return(*arguments)
        calls = integrations.status()[1].calls
        assert [n for path, n in calls.items() if path.endswith("gae_advantage_return")] == [1]
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine[mask != 0], other[mask != 0], rtol=1e-5, atol=1e-5)


ROOT = Path(__file__).resolve().parents[2]
DOCTOR = (
    "import verl; from rlkern import doctor, integrations;"
    "found = integrations.status()[1]; print(found.calls is not None, doctor.trainer(found));"
    "from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as known;"
    "print('rlkern_cfpo' in known)"
)


def fresh(folder: Path, code: str, **versions: str) -> subprocess.CompletedProcess:
    """Returns what a process said in which rlkern's entry points are installed, and packages pass
    for other versions."""
    import tomllib  # of Python 3.11, as verl's environment is

    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [f"[{group}]\n{n} = {v}" for group, each in points.items() for n, v in each.items()]
    for name, version in {"rlkern": "0", **versions}.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "rlkern-0.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    environment.pop("VERL_USE_EXTERNAL_PLUGINS", None)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )


def test_importing_verl_is_enough(tmp_path):
    done = fresh(tmp_path, DOCTOR)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["True 0.9.1, patched by `import verl`", "True"]
    assert "rlkern serves verl.utils" in done.stderr


def test_patching_a_verl_that_its_plugin_patches_meanwhile_says_so(tmp_path):
    done = fresh(tmp_path, "from rlkern.integrations import patch; patch('verl')")
    assert done.stderr.rstrip().endswith("patch: verl is patched already; unpatch('verl') first")


def test_an_older_verl_runs_without_rlkern_and_the_doctor_says_why(tmp_path):
    done = fresh(tmp_path, DOCTOR, verl="0.8.2")
    assert done.returncode == 0, done.stderr
    said, registered = done.stdout.split("\n")[:2]
    assert re.fullmatch("False patch: verl must be verl>=0.9,<0.10, .*, got 0.8.2", said)
    assert registered == "False"
    assert "verl runs without rlkern: PatchError: patch: verl must be" in done.stderr


@pytest.fixture
def plugin(monkeypatch):
    """Returns what loads the plugin anew, as `import verl` does."""
    point = EntryPoint("rlkern", "rlkern.integrations.verl_plugin", "verl.plugins")
    monkeypatch.setattr(verl, "entry_points", lambda **_: [point])
    monkeypatch.delenv("VERL_USE_EXTERNAL_PLUGINS", raising=False)
    monkeypatch.delitem(sys.modules, point.module, raising=False)
    yield point
    sys.modules.pop(point.module, None)


def row() -> str:
    return doctor.trainer(integrations.status()[1])


def test_the_doctor_shows_what_the_plugin_failed_of(plugin, monkeypatch, capsys):
    def register():
        raise RuntimeError("no registry")

    monkeypatch.setattr(verl, "register", register)
    assert row().endswith("but `import verl` does not do it: RuntimeError: no registry")
    assert "verl runs without rlkern: RuntimeError: no registry" in capsys.readouterr().err
    assert integrations.status()[1].calls is None  # nothing is left half-done


def test_the_doctor_shows_a_plugin_that_cannot_be_imported(plugin, monkeypatch):
    monkeypatch.setitem(sys.modules, plugin.module, None)
    assert "does not do it: ModuleNotFoundError" in row()


def test_the_doctor_shows_that_plugins_are_off_or_not_installed(plugin, monkeypatch):
    monkeypatch.setattr(verl, "entry_points", lambda **_: [])
    assert "the plugin rlkern of verl.plugins must be installed" in row()
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    assert row().endswith("VERL_USE_EXTERNAL_PLUGINS=none")


def test_a_renamed_argument_leaves_verl_alone_and_is_said(monkeypatch):
    def forward(self, states, vocab_weights, input_ids, temperature=1.0): ...

    monkeypatch.setattr(FusedLinearForPPO, "forward", forward)
    with pytest.raises(integrations.PatchError, match=r"hidden_states, vocab.*got \(self, states"):
        integrations.patch("verl")
    assert FusedLinearForPPO.forward is forward
    assert "states" in str(integrations.refusal("verl"))
