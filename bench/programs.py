# SPDX-License-Identifier: Apache-2.0
"""Helpers that start and end programs, wait for them, and measure their cost."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.kernel.command import NETTOP
from tests.kernel.terminal import Terminal

TICKS = os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED = 2
"""Scheduler clock of a process, combined with its PID (include/linux/posix-timers_types.h, MAKE_PROCESS_CPUCLOCK)."""
LAST_CPU = (os.cpu_count() or 1) - 1
READY_WITHIN_S = 60.0

Process = subprocess.Popen[bytes]


def run(*words: str, text: str | None = None) -> str:
    """Run a program to its end and return its output; if it fails, exit with its error message."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
    done = subprocess.run(words, capture_output=True, text=True, check=False, **given)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextlib.contextmanager
def running(
    *words: str,
    source: int = subprocess.DEVNULL,
    out: Any = subprocess.DEVNULL,
    err: Any = None,
    end_by: int = signal.SIGTERM,
    **more: Any,
) -> Iterator[Process]:
    """Run a program inside the `with` block, in its own session; it dies with this process, whatever happens."""
    process = subprocess.Popen(
        ("setpriv", "--pdeathsig", "KILL", *words),
        stdin=source,
        stdout=out,
        stderr=out if err is None else err,
        start_new_session=True,
        **more,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(end_by)
            try:
                if process.stdout or process.stderr:
                    process.communicate(timeout=20)
                process.wait(20)
            except subprocess.TimeoutExpired:
                print(f"    {words[0]} does not end", flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def in_background(*options: str) -> contextlib.AbstractContextManager[Process]:
    """Run nettop with its plain output on a pipe."""
    return running(NETTOP, *options, out=subprocess.PIPE, err=sys.stderr)


@contextlib.contextmanager
def printing(*options: str) -> Iterator[Process]:
    """Run nettop, and yield after its first line; the pipe's buffer holds some seconds of its other output."""
    with in_background(*options) as process:
        assert process.stdout
        process.stdout.readline()
        yield process


def drain(process: Process, seconds: float) -> None:
    """Read a program's output for `seconds`."""
    assert process.stdout
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        if select.select([process.stdout], [], [], left)[0] and not os.read(process.stdout.fileno(), 1 << 20):
            return


@contextlib.contextmanager
def built(source: str) -> Iterator[str]:
    """Compile a C file of this directory; yield the program's path."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/{Path(source).stem}"
        run("cc", "-O2", "-o", program, str(Path(__file__).with_name(source)))
        yield program


@contextlib.contextmanager
def readable_folder(name: str) -> Iterator[Path]:
    """Yield a new directory that other users may enter, such as the user that a collector switches to."""
    with tempfile.TemporaryDirectory(prefix=f"nettop-{name}") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def until(condition: Callable[[], object], what: str, pause_s: float = 0.01) -> None:
    """Wait until a condition holds; exit if it does not in time."""
    end = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {READY_WITHIN_S:g} s")
        time.sleep(pause_s)


def for_seconds(seconds: float) -> Iterator[float]:
    """Yield the seconds left until the time is up."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield left


class Screens(Terminal):
    """nettop's screens on a terminal of 120 × 40, whose output is read as it comes."""

    def __init__(self, *options: str, around: Sequence[str] = ()) -> None:
        self.started = time.perf_counter()
        super().__init__(*options, around=around)

    def read_for(self, seconds: float, wanted: bytes | None = None) -> float | None:
        """Read output for `seconds` or until it shows `wanted`; return when, in seconds since the start."""
        for left in for_seconds(seconds):
            self.take_in(left)
            if wanted and self.has_shown(wanted):
                return time.perf_counter() - self.started
        return None

    def last_byte(self, quiet_s: float) -> float | None:
        """Read output until none comes for `quiet_s`; return when the last byte came (time.perf_counter)."""
        last = None
        while self.take_in(quiet_s):
            last = time.perf_counter()
        return last


# --- what processes cost ------------------------------------------------------------------------------------------


def resident_mb(pid: int, name: str = "VmRSS") -> float:
    """Return VmRSS, or another size in /proc/PID/status, in MB (10⁶ bytes)."""
    text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return int(lines[name].split()[0]) * 1024 / 1e6


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat that follow the name; none once the process is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


def living() -> dict[int, list[str]]:
    """Return the fields of /proc/PID/stat for all processes but zombies."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return {pid: fields for pid in pids if (fields := stat_fields(pid)) and fields[0] != "Z"}


def family(pid: int) -> list[int]:
    """Return a process and its living descendants."""
    all_processes, pids = living(), [pid]
    for member in pids:
        pids += [each for each, fields in all_processes.items() if int(fields[1]) == member]
    return pids


def session(pid: int) -> list[int]:
    """Return the processes of a session."""
    return [each for each, fields in living().items() if int(fields[3]) == pid]


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process, its living descendants and the children it has waited for."""
    return sum(
        sum(int(field) for field in stat_fields(member)[11 : 15 if member == pid else 13]) / TICKS
        for member in family(pid)
    )


def cpu_ns(pid: int) -> int:
    """Return the exact CPU time of a process, including interrupts."""
    return time.clock_gettime_ns(~pid << 3 | CPUCLOCK_SCHED)


def cpu_ns_of(pid: int) -> int:
    """Return the exact CPU time of a process and its living descendants."""
    return sum(map(cpu_ns, family(pid)))


def cpu_while(pid: int, act: Callable[[], object]) -> float:
    """Return the share of one CPU that a process and its children take while `act` runs."""
    before, begin = cpu_seconds(pid), time.perf_counter()
    act()
    return (cpu_seconds(pid) - before) / (time.perf_counter() - begin)


def free_udp_port() -> int:
    """Return an unused UDP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
