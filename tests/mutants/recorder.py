# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that tells coverage which test runs, and writes how long each took.

What a fixture of a module or session runs belongs to every test of the file that asked first; the
time it took is written apart: alone, each test that asks for it would take as long.
"""

import json
import os
import time
from pathlib import Path

import coverage
import pytest

NAME = "MUTANTS_TEST"  # read by the processes that a test starts, by way of coverage's settings
_seconds: dict[str, float] = {}
_failed: set[str] = set()
_shared: dict[str, float] = {}  # seconds of each fixture that tests share
_asked: dict[str, list[str]] = {}  # the shared fixtures of a test
_now = {"test": ""}


def _key(fixture) -> str:
    return f"{fixture.baseid}::{fixture.argname}"


def _switch(name: str) -> None:
    os.environ[NAME] = name
    running = coverage.Coverage.current()
    if running is not None:
        running.switch_context(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _switch(item.nodeid)
    _now["test"] = item.nodeid
    known = item._fixtureinfo.name2fixturedefs.values() if hasattr(item, "_fixtureinfo") else ()
    asked = [_key(each[-1]) for each in known if each and each[-1].scope != "function"]
    _asked[item.nodeid] = asked
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    shared = fixturedef.scope != "function"
    before = os.environ.get(NAME, "")
    if shared:
        _switch(before.split("::")[0])
    start = time.perf_counter()
    try:
        return (yield)
    finally:
        if shared:
            took = time.perf_counter() - start
            _shared[_key(fixturedef)] = max(took, _shared.get(_key(fixturedef), 0.0))
            _seconds[_now["test"]] = _seconds.get(_now["test"], 0.0) - took
            _switch(before)


def pytest_runtest_logreport(report):
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.outcome != "passed":  # a test that is skipped notices nothing
        _failed.add(report.nodeid)


def pytest_sessionfinish():
    times = {
        name: [t, {each: _shared.get(each, 0.0) for each in _asked.get(name, ())}]
        for name, t in _seconds.items() if name not in _failed
    }  # fmt: skip
    Path(os.environ["MUTANTS_TIMES"]).write_text(json.dumps(times))
