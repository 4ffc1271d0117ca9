# SPDX-License-Identifier: Apache-2.0
"""docs/conventions.md: every line of code gives what the project's own formula gives."""

import ast
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conventions import (
    liger,
    openrlhf,
    stable_baselines3,
    trl_grpo,
    trl_preference,
    verl_advantage,
    verl_loss,
)
from conventions.batch import LEAVES, batch
from import_rules import ROOT

import rlkern
from rlkern.aggregate import masked_mean, token_weight, whiten

PROJECTS = {
    "TRL": trl_grpo.ROWS | trl_preference.ROWS,
    "verl": verl_loss.ROWS | verl_advantage.ROWS,
    "OpenRLHF": openrlhf.ROWS,
    "Liger": liger.ROWS,
    "Stable-Baselines3": stable_baselines3.ROWS,
}
NAMES = {
    "rlkern": rlkern,
    "torch": torch,
    "math": math,
    "replace": replace,
    "masked_mean": masked_mean,
    "token_weight": token_weight,
    "whiten": whiten,
}


def table_rows() -> list[tuple[str, str, str]]:
    """Returns (project, option, code) of every row of the page's tables."""
    found, project = [], ""
    for line in (ROOT / "docs/conventions.md").read_text(encoding="utf-8").split("\n"):
        if line.startswith("## "):
            project = line.removeprefix("## ").split(" ")[0]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if project and line.startswith("| ") and not cells[0].startswith(("Their option", "---")):
            assert len(cells) == 3, line
            assert re.fullmatch("`[^`]+`", cells[1]), line
            found.append((project, cells[0].replace("`", ""), cells[1].strip("`")))
    return found


PAGE = table_rows()
EACH_ROW = pytest.mark.parametrize("project, option, code", PAGE, ids=lambda x: x[:60])


def with_gradient(result, x: SimpleNamespace) -> list[torch.Tensor]:
    """Returns a result in the form of a tensor, and its gradients in the leaves."""
    result = torch.as_tensor(result, dtype=None if hasattr(result, "dtype") else torch.float64)
    leaves = [getattr(x, name) for name in LEAVES]
    if not result.requires_grad:
        return [result]
    grads = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
    filled = (torch.zeros_like(y) if g is None else g for g, y in zip(grads, leaves))
    return [result.detach(), *filled]


def ours(code: str) -> list[torch.Tensor]:
    x = batch()
    head = rlkern.linear_token_logprob(x.hidden, x.head, x.token, bias=x.bias, mask=x.mask)
    return with_gradient(eval(code, {**NAMES, **vars(x), "scored": head.logprob}), x)


def theirs(project: str, option: str) -> list[torch.Tensor]:
    x = batch()
    return with_gradient(PROJECTS[project][option](x), x)


def agree(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Returns whether the results and gradients are the same to 12 digits."""
    if len(found) != len(expected):
        return False
    pairs = list(zip(found, expected))
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        return False
    return all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in pairs)


def test_every_row_has_a_formula_and_every_formula_a_row():
    rows = [(project, option) for project, option, _ in PAGE]
    assert len(set(rows)) == len(rows)
    assert set(rows) == {(p, option) for p, options in PROJECTS.items() for option in options}


@EACH_ROW
def test_a_line_gives_what_the_project_computes(project: str, option: str, code: str):
    found, expected = ours(code), theirs(project, option)
    assert agree(found, expected), [(a, b) for a, b in zip(found, expected) if not agree([a], [b])]


def changed_numbers(code: str) -> list[str]:
    """Returns the code with each of its decimal numbers changed, one at a time."""
    found = []
    for node in ast.walk(ast.parse(code, mode="eval")):
        if isinstance(node, ast.Constant) and type(node.value) is float:
            changed = 0.01 if node.value == 0.0 else 0.3 * node.value
            line = code.encode()
            found.append(
                (line[: node.col_offset] + repr(changed).encode() + line[node.end_col_offset :])
                .decode()
            )  # fmt: skip
    return found


def noticed(code: str, expected: list[torch.Tensor]) -> bool:
    try:
        return not agree(ours(code), expected)
    except ValueError:
        return True


@EACH_ROW
def test_every_decimal_number_of_a_line_matters(project: str, option: str, code: str):
    expected = theirs(project, option)
    assert not [line for line in changed_numbers(code) if not noticed(line, expected)]
