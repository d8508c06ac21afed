# SPDX-License-Identifier: Apache-2.0
"""Recordings: what they cost beside atop, how large they are, and what ssh carries for a host."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NoReturn

import numpy as np
from harness import OURS, Sample, Scale, Target, Turns, benchmark
from programs import NETTOP, cpu_ns, cpu_ns_of, family, readable_folder, resident_mb, running
from sockets import NAME, connections, own_namespace

from tests.kernel.lab import settle_child

ACTIVE = 200
ACTIVE_NAME = "benchtalker"
PAUSE_S = 0.0035
SETTLE_S, WATCHED_S = 5.0, 9.0


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


def recorder(command: Sequence[str], path: Path, scale: Scale) -> Sample:
    """Return what a recorder takes once it is settled, and what it writes in a second."""
    with running(*command) as process:
        time.sleep(scale.pick(SETTLE_S, 2))
        if process.poll() is not None:
            raise SystemExit(f"{command[0]}: status {process.returncode}")
        before, size, began = cpu_ns_of(process.pid), path.stat().st_size, time.monotonic()
        time.sleep(scale.pick(WATCHED_S, 1))
        seconds = time.monotonic() - began
        share = (cpu_ns_of(process.pid) - before) / seconds / 1e7
        written = (path.stat().st_size - size) / seconds / 1e3
        return {"CPU": share, "memory": sum(map(resident_mb, family(process.pid))), "written": written}


@benchmark(
    "record", "Recording once a second", {"CPU": "% of a CPU", "memory": "MB", "written": "kB/s"}, over="sockets",
    sizes=(2_000,), quick_size=300, rounds=1, peers={"atop -w": "atop"}, has_reference=True,
    targets=(Target(6, "CPU"), Target(80, "memory")),
)  # fmt: skip
def record(scale: Scale) -> Iterator[Turns]:
    """Mostly idle sockets: 200 of them exchange a few messages a second. nettop records every lens, atop processes."""
    own_namespace()
    with readable_folder("recording") as folder, connections(scale.size - ACTIVE, waiting=0), talking(ACTIVE):
        numbers = count()

        def by(*words: str) -> Sample:
            path = folder / f"recorded{next(numbers)}"
            return recorder([word.format(path) for word in words], path, scale)

        yield {OURS: lambda: by(NETTOP, "record", "{}"), "atop -w": lambda: by("atop", "-w", "{}", "1")}


@benchmark(
    "carried", "What ssh carries for a host", {"bytes": "kB/s", "CPU": "% of a CPU"}, over="busy connections",
    sizes=(1_000,), quick_size=100, rounds=1,
)  # fmt: skip
def carried(scale: Scale) -> Iterator[Turns]:
    """`nettop record -` of the connections lens, as `nettop --host` starts it there: each connection exchanges three
    messages a second. Both ends are rows.
    """
    own_namespace()
    with talking(scale.size, 1 / (scale.size / 2 * 3)), tempfile.NamedTemporaryFile() as output:
        words = (NETTOP, "record", "-", "--interval", "1", "--lenses", "connections")

        def turn() -> Sample:
            with running(*words, out=output, err=subprocess.DEVNULL) as process:
                time.sleep(scale.pick(SETTLE_S, 2))
                before, spent, began = os.path.getsize(output.name), cpu_ns(process.pid), time.monotonic()
                time.sleep(scale.pick(WATCHED_S, 2))
                seconds = time.monotonic() - began
                sent = (os.path.getsize(output.name) - before) / seconds / 1e3
                return {"bytes": sent, "CPU": (cpu_ns(process.pid) - spent) / seconds / 1e7}

        yield {OURS: turn}


@benchmark(
    "recorded_rows", "Bytes of a recorded connection", {"bytes": "B", "writing": "ms", "reading": "ms"},
    over="idle connections", sizes=(2_000,), quick_size=200, rounds=1,
    targets=(
        Target(14, "bytes", subject="active"), Target(0.1, "bytes", subject="idle"),
        Target(10, "writing", subject="active"),
    ),
)  # fmt: skip
def recorded_rows(scale: Scale) -> Iterator[Turns]:
    """Real traffic read once a second; active connections exchange a few messages a second. The bytes of a kind, for
    each reading, are those of a recording of its rows alone, less those of one without rows; times are for a reading.
    """
    from nettop import __version__
    from nettop.probes.connections.probe import Connections
    from nettop.recording.chunks import Group
    from nettop.recording.reader import Readings, RecordedFile
    from nettop.recording.writer import RecordingWriter, Sink
    from nettop.snapshots.connections import LENS, SOCKETS
    from nettop.snapshots.snapshot import Snapshot

    def take(seconds: int) -> Iterator[Snapshot]:
        with contextlib.closing(Connections()) as probe, connections(scale.size, waiting=0), talking(ACTIVE):
            probe.start()
            began = time.monotonic()
            for number in range(1, seconds + 1):
                yield probe.read(time.monotonic_ns())
                time.sleep(max(0.0, began + number - time.monotonic()))

    def only(snapshot: Snapshot, *names: str) -> Snapshot:
        rows = snapshot.tables[SOCKETS.name]
        codes = [code for code, name in enumerate(rows.texts["process"]) if name in names]
        kept = replace(rows, array=rows.array[np.isin(rows.array["process"], codes)])
        return replace(snapshot, tables={SOCKETS.name: kept}, ended={})

    def measured(*names: str) -> Sample:
        chosen, content = [only(reading, *names) for reading in taken], bytearray()
        writer = RecordingWriter(Sink(content.extend), Group((), 1.0, __version__))
        begin = time.perf_counter()
        for snapshot in chosen:
            writer.write(snapshot)
        written = time.perf_counter()
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            readings = Readings(RecordedFile(file.fileno()), LENS)
            opened = time.perf_counter()
            for snapshot in chosen:
                readings.at(snapshot.wall_ns)
            read = time.perf_counter()
        rows = sum(len(moment.tables[SOCKETS.name]) for moment in chosen)
        count = len(chosen)
        bytes_each = (len(content) - (empty_bytes if rows else 0)) / (rows or count)
        times = {"writing": (written - begin) / count * 1e3, "reading": (read - opened) / count * 1e3}
        return {"bytes": bytes_each} | times

    own_namespace()
    taken, empty_bytes = list(take(scale.pick(64, 5))), 0.0
    empty_bytes = dict(measured())["bytes"] * len(taken)  # type: ignore[call-overload, operator]
    yield {
        "active": lambda: measured(ACTIVE_NAME),
        "idle": lambda: measured(NAME),
        "a reading without rows": measured,
    }
