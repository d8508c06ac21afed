# SPDX-License-Identifier: Apache-2.0
"""On a machine in trouble: beside 40 busy loops, and in a control group with little memory."""

import contextlib
import http.client
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import OURS, Sample, Scale, Target, Turn, Turns, benchmark
from programs import NETTOP, Screens, drain, for_seconds, resident_mb, run, running, until
from recording import ACTIVE_NAME, talking
from serve import HOST, METRICS, NODE_EXPORTER, PEER_PORT, PORT
from sockets import connections, own_namespace

LOOPS, SCRAPES, SCRAPED_EVERY_S, SCRAPED_WITHIN_S = 40, 5, 1.0, 10.0
WATCHED_S, QUICK_WATCHED_S = 10.0, 2.0
SHOWN_WITHIN_S = 12.0
ROWS = ("--filter", f"process={ACTIVE_NAME}")
NOT_RAISED_OPTION = "--normal-priority"
NOT_RAISED, PEER = "nettop, priority not raised", "node_exporter"
FIRST_ROW = f"{ACTIVE_NAME} ".encode()
"""What a row shows, and the filter does not."""
JUDGED = (0, 1, 3, 4)
"""Exit statuses of `nettop check` once it has judged what can be watched here."""
CHECKED_WITHIN_S = 24.0


def not_raised() -> Sequence[str] | None:
    """Return the option that leaves nettop's priority alone; None if there is none."""
    return (NOT_RAISED_OPTION,) if NOT_RAISED_OPTION in run(NETTOP, "--help-all") else None


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep all CPUs busy by loops, each in a session of its own, as those of several users are."""
    with contextlib.ExitStack() as ends:
        for _ in range(loops):
            ends.enter_context(running("sh", "-c", "while :; do :; done"))
        yield


def longest_gap(descriptor: int, first: float, watched_s: float) -> float:
    """Return the longest time without output while a program is watched; at least until now."""
    last, longest, end = first, 0.0, first + watched_s
    while (now := time.perf_counter()) < end:
        if select.select([descriptor], [], [], end - now)[0]:
            if not os.read(descriptor, 1 << 20):
                break
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
    return max(longest, time.perf_counter() - last)


def of_text(options: Sequence[str], watched_s: float) -> Sample:
    """Measure text: seconds to its first row, and the longest time between refreshes."""
    begin = time.perf_counter()
    words = (NETTOP, "--table", "-d", "-t", "1", "--limit", "5", *ROWS, *options)
    with running(*words, out=subprocess.PIPE, err=sys.stderr, end_by=signal.SIGKILL) as process:
        assert process.stdout
        descriptor, output = process.stdout.fileno(), b""
        for left in for_seconds(SHOWN_WITHIN_S):
            if select.select([descriptor], [], [], left)[0]:
                if not (more := os.read(descriptor, 1 << 16)):
                    raise SystemExit("nettop has ended")
                output += more
            if FIRST_ROW in output:
                first = time.perf_counter()
                gap = longest_gap(descriptor, first, watched_s)
                return {"text, first rows": first - begin, "text, longest gap": gap}
    return {"text, first rows": SHOWN_WITHIN_S}


def of_screens(options: Sequence[str], watched_s: float) -> Sample:
    """Measure the screens: seconds to the first row, and the longest time between refreshes."""
    with Screens("-t", "1", *ROWS, *options) as screens:
        took = screens.read_for(SHOWN_WITHIN_S, FIRST_ROW)
        if took is None:
            return {"screens, first rows": SHOWN_WITHIN_S}
        gap = longest_gap(screens._master, time.perf_counter(), watched_s)
        return {"screens, first rows": took, "screens, longest gap": gap}


def is_answered(port: int) -> bool:
    """Return whether a new client gets a server's metrics in time."""
    connection = http.client.HTTPConnection(HOST, port, timeout=SCRAPED_WITHIN_S)
    end = time.monotonic() + SCRAPED_WITHIN_S
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", METRICS)
        return connection.getresponse().status == 200 and time.monotonic() < end
    return False


def answered(port: int, command: Sequence[str], scrapes: int) -> Sample:
    """Return the seconds until a server gives metrics, and the share of later scrapes that are answered."""
    begin = time.perf_counter()
    with running(*command, end_by=signal.SIGKILL):
        for _ in for_seconds(SHOWN_WITHIN_S):
            if is_answered(port):
                break
            time.sleep(0.02)
        took, answers = time.perf_counter() - begin, 0
        for _ in range(scrapes):
            time.sleep(SCRAPED_EVERY_S)
            answers += is_answered(port)
    return {"first scrape": took, "scrapes answered": 100 * answers / scrapes}


def judged(options: Sequence[str], within_s: float) -> Sample:
    """Return whether `nettop check` judges, and the seconds it takes."""
    begin = time.perf_counter()
    status = None
    started = running(NETTOP, "check", *options, end_by=signal.SIGKILL)
    with started as process, contextlib.suppress(subprocess.TimeoutExpired):
        status = process.wait(within_s)
    return {"check judges": 100 * (status in JUDGED), "check, until it ends": time.perf_counter() - begin}


@benchmark(
    "under_load", "Beside 40 busy loops on all CPUs",
    {
        **{f"{who}, {what}": "s" for who in ("screens", "text") for what in ("first rows", "longest gap")},
        "first scrape": "s", "scrapes answered": "%", "check judges": "%", "check, until it ends": "s",
    },
    over="sockets", sizes=(20_000,), quick_size=200, rounds=1, peers={PEER: NODE_EXPORTER}, has_reference=True,
    targets=(
        *(Target(2.0, f"{who}, {what}") for who in ("screens", "text") for what in ("first rows", "longest gap")),
        *(Target(100, what, at_least=True) for what in ("scrapes answered", "check judges")),
    ),
)  # fmt: skip
def under_load(scale: Scale) -> Iterator[Turns]:
    """20 sockets exchange data, the others are idle. Rows are waited for 12 s, judgement 24 s; a scrape counts if it is
    answered within 10 s. Who measures has real-time priority.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    own_namespace()
    serving = (NETTOP, "serve", "--listen", f"{HOST}:{PORT}")
    exporter = (NODE_EXPORTER, f"--web.listen-address={HOST}:{PEER_PORT}", "--log.level=error")

    scrapes, watched_s = scale.pick(SCRAPES, 1), scale.pick(WATCHED_S, QUICK_WATCHED_S)

    def whole(*options: str) -> Turn:
        def turn() -> Sample:
            parts: list[Any] = [of_text(options, watched_s), of_screens(options, watched_s)]
            parts += [
                answered(PORT, (*serving, *options), scrapes),
                judged(options, CHECKED_WITHIN_S),
            ]
            return {metric: value for part in parts for metric, value in part.items()}

        return turn

    words = not_raised()
    run(NETTOP, "compile")
    with connections(scale.size), talking(20), busy(LOOPS if not scale.quick else 4):
        turns = {OURS: whole(), PEER: lambda: answered(PEER_PORT, exporter, scrapes)}
        yield turns if words is None else turns | {NOT_RAISED: whole(*words)}


# --- little memory ----------------------------------------------------------------------------------------------------

MEMORY_MB = 100


@contextlib.contextmanager
def memory_group(megabytes: int) -> Iterator[Path]:
    """Yield a control group, of either version, whose memory is limited."""
    version1 = Path("/sys/fs/cgroup/memory")
    folder = (version1 if version1.exists() else Path("/sys/fs/cgroup")) / f"nettopbench{os.getpid()}"
    folder.mkdir()
    try:
        limit = "memory.limit_in_bytes" if version1.exists() else "memory.max"
        (folder / limit).write_text(str(megabytes * 1_000_000))
        yield folder
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text(), "the control group is empty")
        folder.rmdir()


@benchmark(
    "little_memory", f"In a control group of {MEMORY_MB} MB", {"lives": "%", "memory": "MB"}, over="sockets",
    sizes=(10_000,), quick_size=200, rounds=1,
    targets=tuple(Target(100, "lives", subject=who, at_least=True) for who in ("text", "screens", "serve")),
)  # fmt: skip
def little_memory(scale: Scale) -> Iterator[Turns]:
    """Whether nettop still runs after 15 seconds, and its largest resident set."""
    own_namespace()
    with connections(scale.size), memory_group(MEMORY_MB) as group:
        inside = ("sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh")
        seconds = scale.pick(WATCHED_S, QUICK_WATCHED_S)

        def state(pid: int) -> Sample:
            with contextlib.suppress(KeyError, OSError):  # it has exited
                return {"lives": 100, "memory": resident_mb(pid, "VmHWM")}
            return {"lives": 0}

        def command(*words: str) -> Turn:
            def turn() -> Sample:
                with running(*inside, NETTOP, *words, out=subprocess.PIPE, end_by=signal.SIGKILL) as process:
                    drain(process, seconds)
                    time.sleep(0.1)
                    return state(process.pid)

            return turn

        def of_screens() -> Sample:
            with Screens("-t", "1", around=inside) as screens:
                with contextlib.suppress(OSError):  # the terminal of a process that was killed
                    screens.read_for(seconds)
                return state(screens.pid)

        serving = command("serve", "--listen", f"{HOST}:{PORT}")
        yield {"text": command("--table", "-d", "-t", "1"), "screens": of_screens, "serve": serving}
