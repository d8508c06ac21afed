# SPDX-License-Identifier: Apache-2.0
"""Explore nettop at random: `sudo .venv/bin/python bench/explore.py [--seed N] [--seconds S] [PART…]`.

The parts are `screens` (keys and bytes typed into the screens), `words` (options and values on the command line) and
`hosts` (interfaces, namespaces, sockets and processes that come and go under load, with totals compared with the
kernel's own counters at every step). The seed determines everything: a fault names the round to repeat with --round.
"""

import random
import signal
import sys
import time
from collections.abc import Callable, Iterator

from explore_hosts import explore_hosts
from explore_screens import explore_screens
from explore_words import explore_words
from measure import Figure, Report, arguments, judge

Round = Callable[[random.Random], list[str]]
"""Explores once with this random generator; returns the faults found."""
PARTS: dict[str, Round] = {"screens": explore_screens, "words": explore_words, "hosts": explore_hosts}


def explore(part: str, seed: str, seconds: float, only: int) -> Iterator[Figure]:
    """Run rounds of a part for `seconds`, or only one; print each fault when it is found."""
    end, number, faults = time.monotonic() + seconds, max(only, 0), 0
    while True:
        for fault in PARTS[part](random.Random(f"{seed}/{part}/{number}")):
            faults += 1
            print(f"\n{part}, --seed {seed} --round {number}: {fault}", flush=True)
        number += 1
        if only >= 0 or time.monotonic() > end:
            break
    yield Figure(f"{part}: rounds with seed {seed}", number - max(only, 0))
    yield Figure(f"{part}: faults", faults, "", 0)


def main() -> int:
    """Explore each part with a fixed seed and with a fresh one; return 1 if any fault was found."""
    options = arguments(
        __doc__,
        PARTS,
        seed=(f"43,{time.time_ns() // 1_000_000_000}", "seeds, separated by commas"),
        seconds=(600.0, "duration per part and seed"),
        round=(-1, "run this round only"),
    )
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reports: Iterator[Report] = (
        (f"Random exploration: {part}", explore(part, seed, options.seconds, options.round))
        for part in options.parts
        for seed in options.seed.split(",")
    )
    return judge(reports)


if __name__ == "__main__":
    sys.exit(main())
