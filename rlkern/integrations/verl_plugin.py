# SPDX-License-Identifier: Apache-2.0
"""What `import verl` loads: patches verl and registers rlkern's losses and advantages, or leaves
why it could not for `rlkern doctor`.

verl swallows what a plugin raises, so a failure would be silence. It is loaded in each of verl's
processes, so a loss is known where it is computed. The names all begin with rlkern_.
"""

import contextlib
import sys

from rlkern.integrations._patch import patch

# Why verl runs without rlkern, None if it does not.
failure: str | None = None

try:
    from rlkern.integrations.verl import register

    with contextlib.ExitStack() as undone:
        undone.enter_context(patch("verl"))
        register()
        undone.pop_all()  # all of it stands
except Exception as error:
    failure = f"{type(error).__name__}: {error}"
    print(f"verl runs without rlkern: {failure}", file=sys.stderr)
