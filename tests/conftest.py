# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole suite: interpreter for Triton, value checks, random numbers."""

import os

# pytest-xdist starts one worker for each core: each computes on its share of them.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

import torch  # noqa: E402

# The decorator of a Triton kernel decides at import, so this comes before any import of rlkern.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("RLKERN_CHECK_VALUES", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Its keys do not know how many metrics an operation returns: yesterday's cache would fail.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import pytest  # noqa: E402

try:  # a GPU machine's own environment may not have it
    from hypothesis import HealthCheck, settings
except ImportError:
    pass
else:
    # The same examples everywhere, and as many on a busy machine as on an idle one.
    settings.register_profile(
        "rlkern",
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("rlkern")


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Makes what a test draws without a generator independent of the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory():
    """Makes torch.empty return NaN, so that an element nobody writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    """Where the library of the emulated CUDA kernels is."""
    from cuda_helpers import build_emulated

    return build_emulated(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
    """The directory of a small run on messages, which nobody changes."""
    from look_helpers import trained_on_chats

    return trained_on_chats(tmp_path_factory.mktemp("look"))


@pytest.fixture
def emulated(emulated_library, monkeypatch):
    """Makes the cuda backend run on the CPU."""
    from cuda_helpers import forget

    monkeypatch.setenv("RLKERN_CUDA_LIBRARY", str(emulated_library))
    forget()
    yield
    forget()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Returns where the cuda backend runs: the emulator's cpu, or a GPU."""
    from cuda_helpers import COMPILER

    from rlkern.backends import cuda

    if request.param == "cuda" and cuda.unavailable():
        pytest.skip(cuda.unavailable())
    if request.param == "cpu" and not COMPILER:
        pytest.skip("g++ is not installed")
    if request.param == "cpu":
        request.getfixturevalue("emulated")
    return request.param


@pytest.fixture
def conformance_table(record_property):
    """Takes a line that is printed when the suite ends, whichever worker ran the test."""
    return lambda line: record_property("conformance", line)


@pytest.fixture
def emulation_table(record_property):
    """Takes a line about compiled kernels that were executed; printed in the same way."""
    return lambda line: record_property("emulation", line)


TABLES = {
    "conformance": "conformance with float64",
    "emulation": "compiled kernels, executed on the CPU",
}


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    properties = [pair for report in reports for pair in report.user_properties]
    for table, title in TABLES.items():
        lines = [line for key, line in properties if key == table]
        if lines and not terminalreporter.config.option.no_summary:
            terminalreporter.section(title)
            terminalreporter.write_line("\n".join(sorted(lines)))
