# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.architectures` tries every class and writes docs/models.md."""

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]
LEAST = 0.9  # of the classes have to be served


def main() -> int:
    """Returns 0 if enough classes are served and none ends in anything but a sentence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("kinds", nargs="*", help="some types only; the page stays as it is")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = os.environ["OMP_NUM_THREADS"] = "1"

    from architectures.page import PAGE, text
    from architectures.serve import tried
    from architectures.tiny import KINDS

    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.jobs, mp_context=start) as pool:
        table = {}
        for kind, found in pool.map(tried, asked.kinds or KINDS):
            table[kind] = found
            print(f"{kind:28} {found}", flush=True)
    served = sum(found.startswith("served") for found in table.values())
    faults = [kind for kind, found in table.items() if found.startswith("fault")]
    print(f"{served} of {len(table)} are served, {len(faults)} end in a fault: {faults}")
    if asked.kinds or faults:
        return len(faults)
    PAGE.write_text(text(table), encoding="utf-8")
    return int(served < LEAST * len(table))


if __name__ == "__main__":
    raise SystemExit(main())
