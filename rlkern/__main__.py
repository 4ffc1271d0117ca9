# SPDX-License-Identifier: Apache-2.0
"""`python -m rlkern`, which is `rlkern`: what torchrun starts."""

import sys

from rlkern.cli import main

sys.exit(main())
