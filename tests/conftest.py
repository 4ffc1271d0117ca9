# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole suite: interpreter for Triton, value checks, random numbers."""

import os

import torch

# The decorator of a Triton kernel decides at import, so this comes before any import of rlkern.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("RLKERN_CHECK_VALUES", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

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

CONFORMANCE: list[str] = []


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


@pytest.fixture
def conformance_table() -> list[str]:
    """Lines printed when the suite ends."""
    return CONFORMANCE


def pytest_terminal_summary(terminalreporter):
    if CONFORMANCE and not terminalreporter.config.option.no_summary:
        terminalreporter.section("conformance with float64")
        terminalreporter.write_line("\n".join(CONFORMANCE))
