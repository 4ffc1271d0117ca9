# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that tells coverage which test runs, and writes how long each took.

What a fixture of a module or session runs belongs to every test of the file that asked first.
"""

import json
import os
from pathlib import Path

import coverage
import pytest

NAME = "MUTANTS_TEST"  # read by the processes that a test starts, by way of coverage's settings
_seconds: dict[str, float] = {}
_failed: set[str] = set()


def _switch(name: str) -> None:
    os.environ[NAME] = name
    running = coverage.Coverage.current()
    if running is not None:
        running.switch_context(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _switch(item.nodeid)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    shared = fixturedef.scope != "function"
    before = os.environ.get(NAME, "")
    if shared:
        _switch(before.split("::")[0])
    try:
        return (yield)
    finally:
        if shared:
            _switch(before)


def pytest_runtest_logreport(report):
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.outcome != "passed":  # a test that is skipped notices nothing
        _failed.add(report.nodeid)


def pytest_sessionfinish():
    times = {name: t for name, t in _seconds.items() if name not in _failed}
    Path(os.environ["MUTANTS_TIMES"]).write_text(json.dumps(times))
