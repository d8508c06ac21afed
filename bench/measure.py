# SPDX-License-Identifier: Apache-2.0
"""Measuring tools: medians side by side, a program on a terminal of its own, memory and CPU time of processes."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NETTOP = os.environ.get("NETTOP_COMMAND", str(Path(sys.executable).with_name("nettop")))
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Figure:
    """One line of the report: a value, and what it may be at most (or has to be at least)."""

    what: str
    value: float
    unit: str
    bound: float | None = None
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the value is within its bound."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        """The figure, its bound and the word ok or over."""
        if self.bound is None:
            return f"  {self.what:<62} {self.value:>10.2f} {self.unit}"
        bound = f"{'≥' if self.at_least else '≤'} {self.bound:<6g} {'ok' if self.kept else 'over'}"
        return f"  {self.what:<62} {self.value:>10.2f} {self.unit:<5} {bound}"


@contextlib.contextmanager
def built(source: str) -> Iterator[str]:
    """Compile a C file of this folder; gives the program."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/{Path(source).stem}"
        subprocess.run(["cc", "-O2", "-o", program, Path(__file__).with_name(source)], check=True)
        yield program


def report(title: str, figures: Sequence[Figure]) -> None:
    """Prints one part of the bench."""
    print(f"\n{title}")
    for figure in figures:
        print(figure.line(), flush=True)


def side_by_side(runs: int, *calls: Callable[[], object]) -> list[float]:
    """The median seconds of each call, taken in turns, so that a busy moment affects all of them."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for call, times in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def run(*command: str) -> Callable[[], object]:
    """A call that runs a program to its end and takes in its output as text, as anyone has to who wants the rows."""
    return lambda: subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
    )


class Terminal:
    """A program on a terminal of its own, whose output is read as it comes."""

    def __init__(self, *command: str, columns: int = 120, lines: int = 40) -> None:
        self.started = time.perf_counter()
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
            os.environ.pop("NO_COLOR", None)
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            os.execvp(command[0], command)
        self.output = bytearray()

    def read_for(self, seconds: float, wanted: bytes | None = None) -> float | None:
        """Takes in output for so long, or until `wanted` is in it; the seconds since the start when it came."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if not select.select([self._master], [], [], left)[0]:
                break
            try:
                self.output += os.read(self._master, 1 << 16)
            except OSError:
                break
            if wanted and wanted in self.output:
                return time.perf_counter() - self.started
        return None

    def last_byte(self, quiet_s: float) -> float | None:
        """Takes in output until none comes for so long; when the last of it came (time.perf_counter)."""
        last = None
        while select.select([self._master], [], [], quiet_s)[0]:
            if not os.read(self._master, 1 << 16):
                break
            last = time.perf_counter()
        return last

    def press(self, key: bytes) -> None:
        """Types what a key of the terminal sends."""
        os.write(self._master, key)

    def end(self) -> None:
        """Ends the program."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        self.read_for(2)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._master)


@contextlib.contextmanager
def on_terminal(*options: str) -> Iterator[Terminal]:
    """nettop's screens on a terminal of 120 × 40."""
    terminal = Terminal(NETTOP, *options)
    try:
        yield terminal
    finally:
        terminal.end()


@contextlib.contextmanager
def in_background(*options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """nettop's plain output, to be read from its pipe."""
    with subprocess.Popen([NETTOP, *options], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def drain(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Reads a program's output for so long."""
    assert process.stdout
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        if select.select([process.stdout], [], [], left)[0] and not os.read(process.stdout.fileno(), 1 << 20):
            return


def resident_mb(pid: int) -> float:
    """VmRSS in MB (10⁶ bytes)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024 / 1e6


def family(pid: int) -> list[int]:
    """The process and its living descendants."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_bytes().rpartition(b")")[2].split()[1])
            parents.setdefault(parent, []).append(int(path.name))
    pids = [pid]
    for member in pids:
        pids += parents.get(member, [])
    return pids


def cpu_seconds(pid: int) -> float:
    """User and system time of the process, its living descendants and the children it has waited for."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_bytes().rpartition(b")")[2].split()
            total += sum(int(field) for field in fields[11 : 15 if member == pid else 13])
    return total / TICKS
