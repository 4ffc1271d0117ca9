# SPDX-License-Identifier: Apache-2.0
"""`rlkern bench`: right before fast, and a table that can be pasted."""

import pytest

from rlkern.cli import main
from rlkern.testing import speed
from rlkern.testing.conformance import Comparison


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_line_of_the_table_has_its_times(capsys):
    assert main(["bench", "--small", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    head, _, *rows = table(printed)
    assert len(rows) == 5 and all(len(row) == len(head) for row in rows)
    for _, _, eager, ours, ratio, *_ in rows:
        medians = [float(x.split(" ")[0]) for x in (eager, ours)]
        # Two decimals, and three digits of each median: what both round away adds up.
        of_medians = medians[0] / medians[1]
        assert abs(float(ratio) - of_medians) <= 0.005 + 0.0101 * of_medians
    assert "with float64: right" in printed and "processor: " in printed


@pytest.mark.parametrize("operation", ("policy_loss", "token_logprob", "gae", "group_advantage"))
def test_a_wrong_operation_is_said_and_nothing_is_timed(monkeypatch, capsys, operation):
    compare, off = speed.compare, Comparison("output", 1e-2, 1e-7, 2e-7)
    monkeypatch.setattr(speed, "compare", lambda x, *y: off if x == operation else compare(x, *y))
    monkeypatch.setattr(speed, "timed", lambda *_: pytest.fail("a wrong operation was timed"))
    assert main(["bench", "--small", "--device", "cpu"]) == 1
    assert f"{operation}: output is 1.00e-02 off, at most 2.00e-07" in capsys.readouterr().out


def test_every_operation_of_the_table_is_judged_in_the_dtype_that_is_timed(capsys):
    assert main(["bench", "--small", "--device", "cpu"]) == 0
    judged = {(x, str(d)) for x, dtypes in speed.DTYPES.items() for d in dtypes}
    for operation, size, *_ in table(capsys.readouterr().out)[2:]:
        stem = operation.partition(",")[0].partition(" (")[0].replace("linear_policy", "policy")
        assert (stem, f"torch.{size.split()[-1]}") in judged


def test_an_unknown_device_is_a_sentence(capsys):
    assert main(["bench", "--device", "tpu"]) == 2
    assert "--device must be one of cpu, cuda, got 'tpu'" in capsys.readouterr().err


def test_a_time_is_the_median_between_its_fifths():
    found = speed.timed(lambda: sum(range(1000)), 0.01)
    assert 0 < found.low <= found.median <= found.high
