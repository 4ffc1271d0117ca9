# SPDX-License-Identifier: Apache-2.0
"""python -m tests.mutants rlkern/ops --count 50"""

# In a module of its own: a process that is started anew cannot import a __main__.
from .tool import main

if __name__ == "__main__":
    main()
