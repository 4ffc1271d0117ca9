# SPDX-License-Identifier: Apache-2.0
"""`python -m rlkern.cli`, which is `rlkern`."""

import sys

from rlkern.cli import main

sys.exit(main())
