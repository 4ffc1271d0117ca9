# SPDX-License-Identifier: Apache-2.0
"""What every command of the trainer does with a mistake: one sentence, no traceback."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable

from rlkern.runs.errors import UserError


def warn(sentence: str) -> None:
    """Prints a sentence beside what a command prints."""
    print(sentence, file=sys.stderr)


def guarded(command: str, work: Callable[[], int]) -> int:
    """Returns the exit code of `work`; what a person can mend is printed as one sentence."""
    _quiet()
    try:
        return work()
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        process = "" if rank == "0" else f" (process {rank})"
        print(f"rlkern {command}{process}: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(f"rlkern {command}: stopped", file=sys.stderr)
        return 130


def _quiet() -> None:
    """Keep libraries from reaching out to a hub and from talking over the progress display."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module=r"(transformers|torch\.utils\.tensorboard)\b.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def silence_hub() -> None:
    """Keep transformers from drawing bars and from warning about what the trainer does itself."""
    from transformers.utils import logging as hub_logging

    hub_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
