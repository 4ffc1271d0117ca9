# SPDX-License-Identifier: Apache-2.0
"""`rlkern doctor`."""

from __future__ import annotations

import sys


def run(arguments: list[str]) -> int:
    """Returns 0 after saying which backend serves each operation here, and why."""
    if arguments:
        print("rlkern doctor takes no options", file=sys.stderr)
        return 0 if arguments[0] in ("-h", "--help") else 2
    from rlkern import doctor

    return doctor.main() or 0
