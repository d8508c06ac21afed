# SPDX-License-Identifier: Apache-2.0
"""Measure recordings: `sudo .venv/bin/python bench/recording.py [cost size seek peers] [--seconds 640] [--quick]`.

`size`: bytes per connection and reading, of real traffic read once a second, and the time to write and to read a
reading. Active connections exchange a few messages a second, of random sizes; idle ones nothing. An end is a row, as on
a host that has only one of them. The cost of a kind is that of a recording of its rows alone, less that of one without
rows; it includes the beginnings of groups if `--seconds` is a multiple of 128. `seek`: the time to open a recording and
to jump to random moments, after it was dropped from the page cache. It is the first group of the other part, repeated.
`peers`: what atop takes, if it is installed. `cost`: the CPU time that a recording of all lenses takes beside reading
them: to find what is wrong, and to write.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from argparse import Namespace as Options
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import NoReturn

import numpy as np
from measure import QUICK, Figure, Report, arguments, judge, percentile
from programs import run
from sockets import NAME, connections, own_namespace

from nettop import __version__
from nettop.commands.record import RecordOptions, record_settings
from nettop.engine.own_cost import READ, WRITE
from nettop.engine.session import Session
from nettop.output.record import run_record
from nettop.probes.connections.probe import Connections
from nettop.process.interrupts import Requests
from nettop.recording.chunks import HEAD_BYTES, Chunk, Group, What, group_of, read_head
from nettop.recording.reader import Readings, RecordedFile
from nettop.recording.writer import READINGS_PER_GROUP, RecordingWriter, Sink
from nettop.snapshots.connections import LENS, SOCKETS
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.snapshot import Snapshot
from tests.kernel.lab import settle_child

ACTIVE, IDLE = 200, 2_000
ACTIVE_NAME = "benchtalker"
PAUSE_S = 0.0035
ORIGIN = Group((), 1.0, __version__)

# --- traffic ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def talking(rows: int, pause_s: float = PAUSE_S) -> Iterator[None]:
    """Hold `rows` ends of connections that exchange requests and responses in random order, with pauses between."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        talk(rows // 2, done, pause_s)
    try:
        os.read(ready, 1)
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def talk(pairs: int, done: int, pause_s: float) -> NoReturn:
    """Open the connections, report, and exchange messages until killed."""
    settle_child(ACTIVE_NAME)
    listener = socket.create_server(("127.0.200.1", 0), backlog=pairs)
    ends = []
    for _ in range(pairs):
        caller = socket.create_connection(listener.getsockname())
        ends.append((caller, listener.accept()[0]))
    os.write(done, b"k")
    chance, content = random.Random(1), bytes(90_000)
    while True:
        caller, answerer = chance.choice(ends)
        caller.sendall(content[: chance.randrange(50, 1500)])
        answerer.recv(2000)
        left = min(len(content), round(chance.lognormvariate(8, 1.2)) + 1)
        answerer.sendall(content[:left])
        while left:
            left -= len(caller.recv(left))
        time.sleep(pause_s)


def take(seconds: int) -> list[Snapshot]:
    """Return readings of the connections lens, one a second."""
    taken = []
    with contextlib.closing(Connections()) as probe, connections(IDLE, waiting=0), talking(ACTIVE):
        probe.start()
        began = time.monotonic()
        for number in count(1):
            taken.append(probe.read(time.monotonic_ns()))
            if number >= seconds:
                return taken
            time.sleep(max(0.0, began + number - time.monotonic()))
    raise AssertionError


def only(snapshot: Snapshot, *names: str) -> Snapshot:
    """Return a snapshot with only the sockets of these processes."""
    rows = snapshot.tables[SOCKETS.name]
    codes = [code for code, name in enumerate(rows.texts["process"]) if name in names]
    kept = replace(rows, array=rows.array[np.isin(rows.array["process"], codes)])
    return replace(snapshot, tables={SOCKETS.name: kept}, ended={})


# --- size -------------------------------------------------------------------------------------------------------------


def recorded(taken: Sequence[Snapshot]) -> tuple[bytes, float]:
    """Return a recording, and the milliseconds that a reading took."""
    content = bytearray()
    recording = RecordingWriter(Sink(content.extend), ORIGIN)
    began = time.perf_counter()
    for snapshot in taken:
        recording.write(snapshot)
    return bytes(content), (time.perf_counter() - began) / len(taken) * 1e3


def read_ms(content: bytes, taken: Sequence[Snapshot]) -> float:
    """Return the milliseconds that reading takes, for each reading."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        readings = Readings(RecordedFile(file.fileno()), LENS)
        began = time.perf_counter()
        for snapshot in taken:
            readings.at(snapshot.wall_ns)
        return (time.perf_counter() - began) / len(taken) * 1e3


def rows_of(taken: Sequence[Snapshot]) -> int:
    """Return the rows of all readings."""
    return sum(len(snapshot.tables[SOCKETS.name]) for snapshot in taken)


def size(taken: Sequence[Snapshot]) -> Report:
    """Measure what a reading takes."""
    kinds = {
        "active": [only(each, ACTIVE_NAME) for each in taken],
        "idle": [only(each, NAME) for each in taken],
        "none": [only(each) for each in taken],
        "both": [only(each, ACTIVE_NAME, NAME) for each in taken],
    }
    contents = {name: recorded(each)[0] for name, each in kinds.items()}
    content, write_ms = recorded(kinds["both"])
    empty = len(contents["none"])
    rows = {name: rows_of(kinds[name]) for name in ("active", "idle")}
    spent = {name: (len(contents[name]) - empty) / rows[name] for name in rows}
    n = len(taken)
    return f"{rows['active'] / n:,.0f} active and {rows['idle'] / n:,.0f} idle connections, {n} readings", [
        Figure("bytes per active connection and reading", spent["active"], "B", 14),
        Figure("bytes per idle connection and reading", spent["idle"], "B", 0.1),
        Figure("bytes of a reading without rows", empty / n, "B"),
        Figure("bytes of a reading", len(content) / n, "B"),
        Figure("an hour, read once a second", len(content) / n * 3600 / 1e6, "MB"),
        Figure("writing a reading", write_ms, "ms"),
        Figure("reading a reading, in order", read_ms(content, kinds["both"]), "ms"),
    ]


# --- seek -------------------------------------------------------------------------------------------------------------


class Repeated:
    """A recording in a file, of the same groups again and again, at later times."""

    def __init__(self, file: int, taken: Sequence[Snapshot], wanted_bytes: int) -> None:
        group = recorded(taken[:READINGS_PER_GROUP])[0]
        step_ns = taken[1].wall_ns - taken[0].wall_ns
        self.begin_ns = taken[0].wall_ns
        self.end_ns = self.begin_ns
        chunks = list(chunks_of(group))
        sink = Sink(partial(write_all, file))
        while sink.size < wanted_bytes:
            late_ns = self.end_ns - self.begin_ns
            previous = sink.group_bytes
            for chunk in chunks:
                wall_ns = chunk.wall_ns + late_ns
                if chunk.what is What.GROUP:
                    sink.put(replace(group_of(chunk), previous=previous).to_chunk(wall_ns))
                else:
                    sink.put(replace(chunk, wall_ns=wall_ns))
            self.end_ns += len(chunks) * step_ns


def chunks_of(content: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a recording."""
    at = 0
    while at < len(content):
        head = read_head(content[at : at + HEAD_BYTES])
        at += HEAD_BYTES
        yield head.complete(content[at : at + head.payload_bytes])
        at += head.payload_bytes


def write_all(file: int, content: bytes) -> None:
    """Write to a file."""
    assert os.write(file, content) == len(content)


def seek(taken: Sequence[Snapshot], megabytes: int, jumps: int) -> Report:
    """Measure jumps to random moments of a large recording, each after it was dropped from the page cache."""
    chance = random.Random(1)
    opening, cold, again = [], [], []
    with tempfile.TemporaryFile(dir=".") as output:
        file = output.fileno()
        whole = Repeated(file, [only(each, ACTIVE_NAME, NAME) for each in taken], megabytes << 20)
        groups = len(RecordedFile(file).groups)
        for _ in range(jumps):
            moment = chance.randrange(whole.begin_ns, whole.end_ns)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            recording = RecordedFile(file)
            opened = time.perf_counter()
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            begun = time.perf_counter()
            assert Readings(recording, LENS).at(moment) is not None
            opening.append((opened - began) * 1e3)
            cold.append((time.perf_counter() - begun) * 1e3)
            began = time.perf_counter()
            assert Readings(recording, LENS).at(moment) is not None
            again.append((time.perf_counter() - began) * 1e3)
    return f"Jumps in {megabytes} MB, {groups:,} groups", [
        Figure("opening, with a cold cache, median", statistics.median(opening), "ms"),
        Figure("a jump, with a cold cache, median", statistics.median(cold), "ms"),
        Figure("a jump, with a cold cache, 95 %", percentile(cold, 95), "ms", 300),
        Figure("a jump, with a warm cache, 95 %", percentile(again, 95), "ms"),
    ]


# --- cost -------------------------------------------------------------------------------------------------------------


def cost(seconds: int, idle: int, active: int) -> Report:
    """Record all lenses beside traffic, and measure what that takes beside reading them."""
    with tempfile.TemporaryDirectory() as folder, connections(idle, waiting=0), talking(active):
        settings = record_settings(RecordOptions(os.path.join(folder, "recorded"), for_=f"{seconds}s"))
        with Session(settings.interval_s, together=settings.lenses) as session:
            run_record(settings, session, Requests(), None, None)
            steps = session.steps.all()
    find_ns = steps[FINDINGS.id, READ].time_ns
    write_ns = sum(step.time_ns for (_, name), step in steps.items() if name == WRITE)
    shares = [spent_ns / seconds / 1e7 for spent_ns in (find_ns, write_ns, find_ns + write_ns)]
    return f"recording all lenses, {idle:,} idle and {active} active connections, {seconds} s", [
        Figure("share of one CPU that finds what is wrong", shares[0], "%"),
        Figure("share of one CPU that writes", shares[1], "%"),
        Figure("share of one CPU beside reading", shares[2], "%", 1),
    ]


# --- peers ------------------------------------------------------------------------------------------------------------


def peers(seconds: int) -> Iterator[Report]:
    """Measure what atop records in the same time, if it is installed: it has processes, not connections."""
    if shutil.which("atop") is None:
        return
    with tempfile.TemporaryDirectory() as folder, connections(IDLE, waiting=0), talking(ACTIVE):
        path = os.path.join(folder, "recorded")
        run("atop", "-w", path, "1", str(seconds))
        size_b = os.path.getsize(path)
    yield f"atop on the same host, {seconds} readings", [Figure("bytes of a reading", size_b / seconds, "B")]


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(
        __doc__,
        ("cost", "size", "seek", "peers"),
        seconds=(640, "readings, one a second"),
        megabytes=(1024, "size of the recording to jump in"),
        quick=QUICK,
    )
    own_namespace()
    return judge(reports(options))


def reports(options: Options) -> Iterator[Report]:
    """Measure the chosen parts."""
    if "cost" in options.parts:
        for idle, active in ((80, 20), (IDLE, ACTIVE)):
            yield cost(10 if options.quick else min(options.seconds, 60), idle, active)
    taken = take(20 if options.quick else options.seconds) if {"size", "seek"} & {*options.parts} else []
    if "size" in options.parts:
        yield size(taken)
    if "seek" in options.parts:
        yield seek(taken, *((8, 5) if options.quick else (options.megabytes, 40)))
    if "peers" in options.parts:
        yield from peers(20)


if __name__ == "__main__":
    sys.exit(main())
