# SPDX-License-Identifier: Apache-2.0
"""Every example in a docstring, and every snippet of the README, does what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import rlkern

ROOT = Path(__file__).resolve().parents[1]
# After its import launches compile instead of running: it has a test and a process of its own.
OWN_PROCESS = {"rlkern.testing.aot"}
# Needs what may be missing: a compiler for the extension, Triton, and the packages of the trainer.
OPTIONAL = ("_C", "triton", "transformers", "rich", "matplotlib", "reasoning_gym", "gymnasium")


def modules():
    found = [m.name for m in pkgutil.walk_packages(rlkern.__path__, "rlkern.")]
    return ["rlkern", *(name for name in found if name not in OWN_PROCESS | {"rlkern._C"})]


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if not any(word in str(error) for word in OPTIONAL):
            raise
        pytest.skip(f"{name} cannot be imported here: {error}")


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_this_module_hold(name):
    module = load(name)
    torch.manual_seed(0)
    with torch.random.fork_rng():
        results = doctest.testmod(module, extraglobs={"torch": torch, "rlkern": rlkern})
    assert results.failed == 0


@pytest.mark.parametrize("name", rlkern.__all__)
def test_every_public_function_has_an_example(name):
    public = getattr(rlkern, name)
    if isinstance(public, type) or not callable(public):
        return  # results, errors and modules are shown by the functions that use them
    assert ">>> " in public.__doc__, f"rlkern.{name} has no doctest"


@pytest.mark.parametrize("name", [name for name in modules() if ".algorithms." in name])
def test_every_algorithm_is_shown_with_numbers(name):
    module = importlib.import_module(name)
    examples = doctest.DocTestParser().get_examples(module.__doc__)
    assert not hasattr(module, "ALGORITHM") or any(e.want.strip() for e in examples)


def snippets():
    """Returns the Python blocks of the README as (line of its first line, code)."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: m.start(1)].count("\n") + 1, m.group(1)) for m in found]


def test_the_readme_has_snippets():
    assert snippets(), "README.md is missing or shows no Python"


@pytest.mark.parametrize("line,code", snippets())
def test_this_snippet_of_the_readme_runs(line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what it writes stays out of the tree
    padded = "\n" * (line - 1) + code  # so that a traceback names the README's own line
    if ">>> " in code:
        test = doctest.DocTestParser().get_doctest(code, {}, "README.md", "README.md", line)
        assert doctest.DocTestRunner().run(test).failed == 0
        return
    exec(compile(padded, str(ROOT / "README.md"), "exec"), {"__name__": "__main__"})
