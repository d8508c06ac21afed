# SPDX-License-Identifier: Apache-2.0
"""Measure how fast nettop starts: `sudo .venv/bin/python bench/start.py [--runs 15] [--than DIR]`.

Text and `nettop run` are measured until they exit, the screens until they show a row, and until they show the table of
a lens after its key was pressed. With --than, runs of this checkout alternate with runs of the one in DIR.
"""

import resource
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from measure import Figure, Report, arguments, judge
from programs import NETTOP, READY_WITHIN_S, Screens, cpu_ns, run

from nettop.snapshots import lenses

CHECKOUT = Path(__file__).parents[1]
BOUND_S, KEY_BOUND_S = 0.4, 0.5
HEADS = {
    "cpu": b"full bar",
    "bandwidth": b"INTERFACE",
    "latency": b"STAGE",
    "drops": b"REASON",
    "services": b"SERVICE",
}
"""What each lens shows with its first reading, and no other one shows."""
QUIET_S = 0.3
Measure = Callable[[Sequence[str]], tuple[float, float]]
"""Runs nettop after these words; returns the seconds it took, and those of CPU time."""


def until_exit(*words: str) -> Measure:
    """Return a measure of a command until it exits."""

    def measure(around: Sequence[str]) -> tuple[float, float]:
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        run(*around, NETTOP, *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.monotonic() - began, sum(after[:2]) - sum(before[:2])

    return measure


def until_row(around: Sequence[str]) -> tuple[float, float]:
    """Measure the screens until they show the row of a listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1]).encode()
        with Screens("--all", "--columns", "local,state", "--numeric", around=around) as screens:
            took = screens.read_for(READY_WITHIN_S, port)
            if took is None:
                raise SystemExit("the screens show no row of a listening socket")
            return took, cpu_ns(screens.pid) / 1e9


def until_lens(lens: str) -> Measure:
    """Return a measure of the screens, from a lens's key until they show its table."""
    digit = next(each.digit for each in lenses() if each.id == lens).encode()

    def measure(around: Sequence[str]) -> tuple[float, float]:
        with Screens(around=around) as screens:
            screens.read_for(READY_WITHIN_S, b"PROCESS")
            screens.last_byte(QUIET_S)
            screens.output.clear()
            spent_ns, screens.started = cpu_ns(screens.pid), time.perf_counter()
            screens.type(digit)
            took = screens.read_for(READY_WITHIN_S, HEADS[lens])
            if took is None:
                raise SystemExit(f"the screens do not show {lens}")
            return took, (cpu_ns(screens.pid) - spent_ns) / 1e9

    return measure


MODES: dict[str, Measure] = {
    "nettop": until_row,
    "nettop --table --once": until_exit("--table", "--once"),
    "nettop run -- true": until_exit("run", "--", "true"),
    **{f"the key of {lens}": until_lens(lens) for lens in HEADS},
}


def importing_from(checkout: Path) -> list[str]:
    """Return the words that run a program with the modules of a checkout, which Python may compile for the next run."""
    return ["env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPATH={checkout}"]


def _reports(runs: int, checkouts: list[Path]) -> Iterator[Report]:
    for mode, measure in MODES.items():
        # The first turn compiles modules and programs.
        turns = [[measure(importing_from(checkout)) for checkout in checkouts] for _ in range(runs + 1)][1:]
        figures = []
        for checkout, taken in zip(checkouts, zip(*turns, strict=True), strict=True):
            for what, values in zip(("wall", "CPU"), zip(*taken, strict=True), strict=True):
                most_s = KEY_BOUND_S if mode.startswith("the key") else BOUND_S
                bound = most_s if what == "wall" and checkout == CHECKOUT else None
                name = f"{checkout} {what}, {min(values):.2f} to {max(values):.2f} s"
                figures.append(Figure(name, statistics.median(values), "s", bound))
        yield mode, figures


if __name__ == "__main__":
    chosen = arguments(__doc__, runs=(15, "runs of each"), than=("", "another checkout to compare with"))
    others = [Path(chosen.than).resolve()] if chosen.than else []
    sys.exit(judge(_reports(chosen.runs, [*others, CHECKOUT])))
