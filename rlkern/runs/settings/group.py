# SPDX-License-Identifier: Apache-2.0
"""What every group of settings is."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    """Keys that belong together; immutable once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    main: ClassVar[str | None] = None
