# SPDX-License-Identifier: Apache-2.0
"""`python -m rlkern.cli`, which is `rlkern`."""

import sys

from rlkern.cli import main

if __name__ == "__main__":
    sys.exit(main())
