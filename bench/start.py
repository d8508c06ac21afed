# SPDX-License-Identifier: Apache-2.0
"""Measure how fast nettop starts: `sudo .venv/bin/python bench/start.py [--runs 15] [--than DIR]`.

Text and `nettop run` are measured until they exit, the screens in a pseudo-terminal until they show a row. With --than,
runs of this checkout alternate with runs of the one in DIR.
"""

import fcntl
import os
import pty
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import Figure, Report, arguments, judge

CHECKOUT = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
BOUND_S = 0.4
Measure = Callable[[Path], tuple[float, float]]
"""Runs nettop in a checkout; returns the seconds it took, and those of CPU time."""


def until_exit(*words: str) -> Measure:
    """Return a measure of a command until it exits."""

    def measure(checkout: Path) -> tuple[float, float]:
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "nettop", *words]
        subprocess.run(command, cwd=checkout, env=ENVIRONMENT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.monotonic() - began, sum(after[:2]) - sum(before[:2])

    return measure


def until_row(checkout: Path) -> tuple[float, float]:
    """Measure the screens until they show the row of a listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        began = time.monotonic()
        child, terminal = pty.fork()
        if not child:
            os.chdir(checkout)
            words = ("-m", "nettop", "--all", "--columns", "local,state", "--numeric")
            os.execve(sys.executable, [sys.executable, *words], ENVIRONMENT | {"TERM": "xterm-256color"})
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        shown = b""
        while port.encode() not in shown:
            shown += os.read(terminal, 1 << 16)
        # CPUCLOCK_SCHED of another process, as in include/linux/posix-timers.h.
        took = time.monotonic() - began, time.clock_gettime(~child << 3 | 2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(terminal)
    return took


MODES: dict[str, Measure] = {
    "nettop": until_row,
    "nettop --table --once": until_exit("--table", "--once"),
    "nettop run -- true": until_exit("run", "--", "true"),
}


def _reports(runs: int, checkouts: list[Path]) -> Iterator[Report]:
    for mode, measure in MODES.items():
        # The first turn compiles modules and programs.
        turns = [[measure(checkout) for checkout in checkouts] for _ in range(runs + 1)][1:]
        figures = []
        for checkout, taken in zip(checkouts, zip(*turns, strict=True), strict=True):
            for what, values in zip(("wall", "CPU"), zip(*taken, strict=True), strict=True):
                bound = BOUND_S if what == "wall" and checkout == CHECKOUT else None
                name = f"{checkout} {what}, {min(values):.2f} to {max(values):.2f} s"
                figures.append(Figure(name, statistics.median(values), "s", bound))
        yield mode, figures


if __name__ == "__main__":
    chosen = arguments(__doc__, runs=(15, "runs of each"), than=("", "another checkout to compare with"))
    others = [Path(chosen.than).resolve()] if chosen.than else []
    sys.exit(judge(_reports(chosen.runs, [*others, CHECKOUT])))
