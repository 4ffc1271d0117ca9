# SPDX-License-Identifier: Apache-2.0
"""The folder of a random model, for runs of trainers."""

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Returns the folder of a random two-layer Llama and its tokenizer."""
    pytest.importorskip("trl")
    from .trl_runs import save_model

    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder
