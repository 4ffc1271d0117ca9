# SPDX-License-Identifier: Apache-2.0
"""verl's FSDP2 engine on a CPU trains with rlkern inside as it does without."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_helpers import spawn

pytest.importorskip("verl")

from rlkern import integrations  # noqa: E402
from rlkern.integrations import _patch  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "examples" / "verl_engine.py"
UPDATES = 3


@pytest.fixture(scope="module")
def example():
    """Returns the example, whose platform lets the engine run on a CPU."""
    spec = importlib.util.spec_from_file_location("verl_engine_example", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(example, folder, way: str) -> dict[str, torch.Tensor]:
    """Returns what three updates of two micro-batches gave: plain, fused by verl, or by rlkern."""
    if "verl" in _patch._active:
        integrations.unpatch("verl")
    if way == "rlkern":
        integrations.patch("verl")
    rank = torch.distributed.get_rank()
    engine = example.make_engine(str(folder), fused=way != "plain")
    batch = example.answers(8, seed=rank, fused=way != "plain")
    example.tu.assign_non_tensor(batch, temperature=0.8)
    batch["old_log_probs"] = example.scores(engine, batch)
    batch["advantages"] = torch.randn(8, 1).expand(8, example.ANSWER) * batch["response_mask"]
    actor = example.settings.FSDPActorConfig(
        strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=4, entropy_coeff=0.1
    )
    found = {"before": batch["old_log_probs"]}
    for step in range(UPDATES):
        metrics = example.update(engine, batch, actor)
        for name in ("actor/pg_loss", "actor/entropy_loss"):
            found[f"{name} {step}"] = torch.tensor(metrics[name].aggregate())
        found[f"gradient norm {step}"] = torch.tensor(metrics["grad_norm"])
    found["after"] = example.scores(engine, batch)
    found.update({name: x.clone() for name, x in engine.get_per_tensor_param()[0]})
    if way == "rlkern":
        (calls,) = [n for p, n in integrations.status()[1].calls.items() if "FusedLinear" in p]
        assert calls == 2 * (UPDATES + 2)
    return found


def each_rank(example, folder, way: str, ranks: int = 1) -> list[dict[str, torch.Tensor]]:
    """Returns what `trained` did in each of some processes, which know what is imported here."""

    def one(rank: int):
        torch.manual_seed(rank)
        return trained(example, folder / "model", way)

    (folder / way).mkdir()
    return spawn(one, ranks, folder / way, start="fork")


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert not torch.equal(mine["before"], mine["after"])
        for name, x in other.items():
            torch.testing.assert_close(mine[name], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_tied_head_trains_the_same_in_all_three_ways(example, tmp_path, ranks):
    example.save_model(str(tmp_path / "model"), tied=True)
    plain, fused, ours = (
        each_rank(example, tmp_path, way, ranks) for way in ("plain", "fused", "rlkern")
    )
    assert_same(fused, plain)
    assert_same(ours, plain)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_head_of_its_own_trains_the_same_where_verls_fused_path_fails(example, tmp_path, ranks):
    example.save_model(str(tmp_path / "model"), tied=False)
    plain = each_rank(example, tmp_path, "plain", ranks)
    assert_same(each_rank(example, tmp_path, "rlkern", ranks), plain)
    with pytest.raises(Exception, match="mixed torch.Tensor and DTensor"):
        each_rank(example, tmp_path, "fused", ranks)


COMMANDS = re.findall(r"(?m)^    (python|torchrun)( [^\n]*?)(?:   .*)?$", PAGE.read_text())


@pytest.mark.parametrize("program,options", COMMANDS)
def test_the_example_runs_as_printed(program, options):
    path = str(Path(sys.executable).parent / "torchrun")
    command = [sys.executable] if program == "python" else [sys.executable, path]
    done = subprocess.run(
        [*command, *options.split()], cwd=PAGE.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before, after, batches = re.search(
        r"odd ones (\S+) -> (\S+); rlkern scored (\d+)", done.stdout
    ).groups()
    assert float(after) > float(before) + 0.05 and int(batches) > 0
