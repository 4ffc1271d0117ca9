# SPDX-License-Identifier: Apache-2.0
"""One binary for several instruction sets: no set's code may stand in for another's."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from rlkern.backends import _load

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "native" / sysconfig.get_config_var("SOABI")
SETS = _load("cpu")[0]._C.isa_names() if _load("cpu")[1] is None else []
COMPILED = ("avx512_bf16", "avx512", "avx2", "baseline")

BITS = """
import hashlib, importlib.util, sys
if sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("rlkern._C", sys.argv[1])
    sys.modules["rlkern._C"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["rlkern._C"])
import torch, rlkern
from rlkern.backends import _load
native = _load("cpu")[0]
assert not sys.argv[1:] or native._C.__file__ == sys.argv[1], native._C.__file__
seen = hashlib.sha256(native._C.isa_chosen().encode())
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    leaf = (3 * torch.randn(2, 3, 1021)).to(dtype).requires_grad_()
    token, rows = torch.randint(1021, (2, 3)), torch.randn(2, 3)
    for options in ({}, {"softcap": 5.0, "entropy_coef": 0.1}, {"keep": token[..., None]}):
        out = rlkern.policy_loss(leaf, token, rows, rows > -1, **options)
        out.loss.backward()
        for x in (out.loss, leaf.grad.double()):
            seen.update(x.detach().numpy().tobytes())
    reward, value = torch.randn(2, 20, 37).to(torch.promote_types(dtype, torch.float32))
    weight = torch.rand_like(value)
    for x in (*rlkern.gae(reward, value, reward > -1, discount=0.9),
              rlkern.value_loss(value, reward, weight, reward > -1, weight=weight).loss,
              rlkern.sequence_logprob(value, reward > -1)):
        seen.update(x.numpy().tobytes())
print(seen.hexdigest())
"""


def objects() -> list[str]:
    """Returns the names of the objects that were linked."""
    text = (BUILD / "build.ninja").read_text() if (BUILD / "build.ninja").is_file() else ""
    linked = re.search(r"(?m)^build \S+: link (.*)$", text)
    return linked[1].split() if linked and SETS else []


needs_objects = pytest.mark.skipif(not objects(), reason="the extension was not built here")


def defined(name: str) -> list[tuple[str, str]]:
    """Returns (kind, symbol) of what an object defines."""
    said = subprocess.run(
        ["nm", "-C", "--defined-only", name], cwd=BUILD, check=True, capture_output=True, text=True
    ).stdout
    return re.findall(r"(?m)^[0-9a-f]+ (\w) (.*)$", said)


@needs_objects
@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
@pytest.mark.parametrize("isa", COMPILED)
def test_every_symbol_of_a_set_names_it_and_none_is_shared(isa):
    own = [name for name in objects() if name.startswith(f"{isa}.")]
    assert own or isa not in SETS
    symbols = [pair for name in own for pair in defined(name)]
    # Local ones, too, if they are code: a profile shall tell them apart.
    named = [symbol for kind, symbol in symbols if kind not in "rdb"]
    assert len(named) >= 20 or not own
    assert not [symbol for symbol in named if f"rlkern::{isa}::" not in symbol]


def bits(isa: str, *library: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BITS, *library], capture_output=True, text=True,
        env={**os.environ, "RLKERN_ISA": isa, "RLKERN_BACKEND": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def linked_backwards(tmp_path_factory) -> str:
    target = str(tmp_path_factory.mktemp("backwards") / "_C.so")
    command = re.search(r"(?m)^  command = (.*) \$in -o \$out\n  description = LINK", (
        BUILD / "build.ninja").read_text())[1]  # fmt: skip
    subprocess.run([*command.split(), *reversed(objects()), "-o", target], cwd=BUILD, check=True)
    return target


@needs_objects
@pytest.mark.parametrize("isa", SETS)
def test_the_order_of_the_link_changes_no_bit(isa, linked_backwards):
    assert bits(isa) == bits(isa, linked_backwards)
