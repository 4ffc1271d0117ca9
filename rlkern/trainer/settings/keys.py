# SPDX-License-Identifier: Apache-2.0
"""The keys of the trainer's settings."""

from __future__ import annotations

from rlkern.algorithms import declarations
from rlkern.runs.settings.layers import leaves
from rlkern.trainer.settings.schema import Settings

# Mappings whose keys are not known here: coefficients of algorithms, options of task
# families, columns of files.
OF_DATA = ("data.options", "data.columns")
FREE = ("coefficients", *OF_DATA)


def coefficients() -> list[str]:
    """Returns the keys of the coefficients that some algorithm has."""
    every = declarations().values()
    return list(dict.fromkeys(f"coefficients.{name}" for each in every for name in each.defaults))


def every_key() -> list[str]:
    """Returns the dotted keys of all settings, those of coefficients included."""
    return [name for name, _ in leaves(Settings)] + coefficients()
