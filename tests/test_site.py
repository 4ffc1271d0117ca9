# SPDX-License-Identifier: Apache-2.0
"""The site that `make site` builds: every public name has a place, every page is in the menu."""

import ast
import doctest
import re

import trainer_helpers
import yaml

import rlkern

ROOT = trainer_helpers.ROOT


def functions(path, *names):
    """Returns functions of a file that imports what is not installed here."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kept = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
    plain = [n for n in tree.body if isinstance(n, ast.Assign)]
    space = {"ast": ast, "re": re, "__file__": str(ROOT / path)}
    exec("from pathlib import Path\nimport textwrap", space)
    exec(compile(ast.Module([*plain, *kept], []), path, "exec"), space)
    return [space[name] for name in names]


def test_the_reference_has_every_public_name():
    public, page_of = functions("docs/site_hooks.py", "public", "page_of")
    assert set(public()) == set(rlkern.__all__)
    assert page_of("policy_loss").endswith("losses.md")
    assert page_of("gae").endswith("advantages.md")
    assert page_of("explain").endswith("others.md")


def test_a_docstring_is_put_into_blocks():
    (fenced,) = functions("docs/site_docstrings.py", "fenced")
    example = doctest.DocTestParser().get_doctest(
        fenced.__doc__, {"fenced": fenced}, "fenced", None, 0
    )
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0
    assert fenced("x\n\n>>> 1\n1") == "x\n\n```python\n>>> 1\n1\n```"
    made = fenced("Raises\n    ValueError  for x")
    assert made == "**Raises**\n\n```text\nValueError  for x\n```"


def test_every_document_is_in_the_menu_of_the_site():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", str(nav)))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages <= listed
