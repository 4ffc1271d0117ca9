# SPDX-License-Identifier: Apache-2.0
"""The choice of a backend from its one table; no folder of ours hides the package of another."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import rlkern
from rlkern import backends
from rlkern.backends import Backend

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def table(monkeypatch):
    """Returns a function that puts a backend called mine, which has gae only, into the table."""

    def enter(place: int, **declared) -> None:
        module = ModuleType("rlkern.backends.mine")
        module.unavailable = lambda: None
        module.unsupported = lambda stem, device, dtype: None
        module.gae = lambda *rest: None
        monkeypatch.setitem(sys.modules, module.__name__, module)
        entries = list(backends.BACKENDS)
        entries.insert(place, Backend("mine", **declared))
        monkeypatch.setattr(backends, "BACKENDS", tuple(entries))
        forget()

    def forget() -> None:
        for remembered in (backends._resolve, backends._load):
            remembered.cache_clear()

    yield enter
    forget()


def said_of_mine() -> list[str]:
    return [line for line in rlkern.explain().splitlines() if line.startswith("not mine on cpu")]


@pytest.mark.parametrize("devices", [None, ("cpu",)])
def test_a_line_in_the_table_is_all_that_a_new_backend_takes(table, devices):
    table(0, devices=devices)
    assert rlkern.backend_name("gae") == "mine"
    assert rlkern.backend_name("policy_loss") != "mine"
    said = "\n".join(said_of_mine())
    assert "has no policy_loss" in said and "has no gae" not in said


@pytest.mark.parametrize(
    ("place", "declared", "reason"),
    [
        (0, {"devices": ("xpu",)}, "it is chosen on xpu"),
        (0, {"by_name": "nobody has tried it"}, "as nobody has tried it"),
        (len(backends.BACKENDS), {}, "is asked first"),
    ],
)
def test_explain_says_why_a_backend_that_could_serve_does_not(table, place, declared, reason):
    table(place, **declared)
    assert rlkern.backend_name("gae") != "mine"
    (line,) = [line for line in said_of_mine() if line.endswith("(gae)")]
    assert reason in line


def test_no_backend_lost_an_operation_that_it_has():
    for name, absent in {"triton": {"td_loss"}, "cpu": set(), "eager": set()}.items():
        module, _ = backends._load(name)
        if module is None:  # without the package, or the extension
            continue
        assert {s for s in backends.STEMS if not callable(getattr(module, s, None))} == absent


def test_a_file_of_a_backend_that_exports_no_function_serves_nothing(table):
    table(0)
    sys.modules["rlkern.backends.mine"].td_loss = ModuleType("rlkern.backends.mine.td_loss")
    assert rlkern.backend_name("td_loss") != "mine"
    assert any("has no" in line and "td_loss" in line for line in said_of_mine())


def test_explain_says_what_was_asked_for_by_name():
    with rlkern.use_backend("eager"):
        said = rlkern.explain()
    assert "not cpu on cpu:" in said and "not eager" not in said


def test_a_backend_asked_for_by_name_raises_where_it_cannot_serve():
    with rlkern.use_backend("eager"):
        assert rlkern.backend_name("gae", "xpu", torch.float64) == "eager"
    assert rlkern.backend_name("gae", "xpu") == "eager"


# Not there at all, as if it had never been installed: probes ask in more than one way.
WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] == "triton" else self.finder.find_spec(name, *rest)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
"""


def in_the_checkout(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("prelude", ["", WITHOUT], ids=["as it is here", "without Triton"])
def test_transformers_imports_with_the_checkout_on_the_path(prelude):
    pytest.importorskip("transformers")
    code = f"{prelude}\nfrom transformers import LlamaConfig\nprint(LlamaConfig.__name__)"
    assert in_the_checkout(code) == "LlamaConfig"


@pytest.mark.parametrize("prelude", ["", WITHOUT], ids=["as it is here", "without Triton"])
def test_the_package_kernels_of_hugging_face_is_found_from_the_checkout(prelude, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("__version__ = 'of Hugging Face'\n")
    code = f"import sys\nsys.path.append({str(tmp_path)!r})\nimport kernels\n"
    assert in_the_checkout(f"{prelude}\n{code}print(kernels.__version__)") == "of Hugging Face"
