# SPDX-License-Identifier: Apache-2.0
"""What `import verl` loads: patches verl, or leaves why it could not for `rlkern doctor`.

verl swallows what a plugin raises, so a failure would be silence.
"""

import sys

from rlkern.integrations._patch import PatchError, patch

# Why verl is not patched, None if it is.
failure: str | None = None

try:
    patch("verl")
except (PatchError, ImportError) as error:
    failure = str(error)
    print(f"verl runs without rlkern: {error}", file=sys.stderr)
