# SPDX-License-Identifier: Apache-2.0
"""Random exploration: `sudo .venv/bin/python bench/explore.py [--seed N] [--seconds S] [PART…]`.

The parts are `screens` (keys and bytes into the screens), `words` (options and values into the command line) and
`hosts` (interfaces, namespaces, sockets and processes that come and go under load, with totals compared with the
kernel's own counters at every step). Everything follows from the seed: a fault names the round to repeat with --round.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from measure import Figure, report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from explore_hosts import explore_hosts  # noqa: E402 - beside this file
from explore_screens import explore_screens  # noqa: E402
from explore_words import explore_words  # noqa: E402

Round = Callable[[random.Random], list[str]]
"""Explores once with this source of chance; returns what went wrong."""
PARTS: dict[str, Round] = {"screens": explore_screens, "words": explore_words, "hosts": explore_hosts}


def explore(part: str, seed: str, seconds: float, only: int | None) -> list[Figure]:
    """Run rounds of a part for so long, or one of them; each fault is printed as soon as it is found."""
    end, number, faults = time.monotonic() + seconds, only or 0, 0
    while True:
        for fault in PARTS[part](random.Random(f"{seed}/{part}/{number}")):
            faults += 1
            print(f"\n{part}, --seed {seed} --round {number}: {fault}", flush=True)
        number += 1
        if only is not None or time.monotonic() > end:
            break
    return [
        Figure(f"{part}: rounds with seed {seed}", number - (only or 0), ""),
        Figure(f"{part}: faults", faults, "", 0),
    ]


def main() -> None:
    """Explore each part with a fixed seed and with a fresh one; exit with 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--seed", action="append", help="may be repeated (43, and the time of day)")
    parser.add_argument("--seconds", type=float, default=600, help="for each part and seed (600)")
    parser.add_argument("--round", type=int, help="repeat this round alone")
    options = parser.parse_args()
    # The jobs that a shell runs in the background ignore it, and hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    figures = [
        figure
        for part in options.parts or PARTS
        for seed in options.seed or ("43", str(time.time_ns() // 1_000_000_000))
        for figure in explore(part, seed, options.seconds, options.round)
    ]
    report("Random exploration", figures)
    sys.exit(not all(figure.kept for figure in figures))


if __name__ == "__main__":
    main()
