#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Record nettop/demo.nettop, which `nettop --demo` shows: real incidents in network namespaces. Needs root.

The incidents are faults of tests/kernel/faults.py, one after the other beside a service that slows down and the loads
of a good day. What else runs on this machine is left out.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.recording.chunks import Chunk, What  # noqa: E402 - the checkout comes first
from nettop.recording.reader import Readings  # noqa: E402
from nettop.recording.recording import Recording, open_recording  # noqa: E402
from nettop.recording.writer import RecordingWriter, Sink  # noqa: E402
from nettop.snapshots import find_table, lenses  # noqa: E402
from nettop.snapshots.schema import OWN_NAMESPACE, Kind  # noqa: E402
from nettop.snapshots.snapshot import Ended, Rows, Snapshot, known, unknown_value  # noqa: E402

DEMO = ROOT / "nettop" / "demo.nettop"
MOST_BYTES = 1 << 20
HOST = "web1"
SECONDS = 80
WELL_S = 36
"""Seconds for which the service works well: its usual times have to be known."""
CONTROL_GROUPS = {"cgroup", "container"}
"""Columns that say how this machine is set up."""
UNREAD = "processes"
"""Counts the processes whose values in these columns are lost."""
NAMESPACE = re.compile(r"ntlab\d+n\d+x\d+")
"""The names of the faults' network namespaces."""
OWN = frozenset({"nettop", "python", "python3", "sh"})
"""Processes that make the recording."""
OUTSIDE = re.compile(r" \(outside\)$")
"""Ends the names of this machine's other processes."""
ALONE = [
    "unshare",
    "--uts",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "nice",
    "-n",
    "-20",
    "sh",
    "-c",
]
NAMES_OF_ITS_OWN = 'mkdir -p /run/netns && mount -t tmpfs netns /run/netns && exec "$@"'
"""Together run a command as a host of its own, before most of what this machine runs. It must not see the names of the
machine's network namespaces: a lab removes those whose process it cannot see."""
URGENT = ["chrt", "--fifo", "20"]
"""Runs the recorder at once, but not the loads: of a real-time process, the kernel skips more runs of hooks."""


LOADS = ("iperf3", "pgbench")
"""What runs all the time: without trouble, and by programs that everyone knows."""


class Incident(NamedTuple):
    """A fault, and when it begins and how long it lasts, in seconds of the recording."""

    fault: str
    at: float
    lasts: float


INCIDENTS = (
    Incident("slow-service", 0, 78),
    Incident("path-loss", 6, 12),
    Incident("slow-reader", 22, 14),
    Incident("syn-flood", 40, 10),
    Incident("dns-slow", 52, 14),
)


def main() -> str | int | None:
    """Make the recording; return what it has missed, or why it cannot be used."""
    if os.getpid() != 1:
        return subprocess.call([*ALONE, NAMES_OF_ITS_OWN, "demo", sys.executable, __file__])
    socket.sethostname(HOST)
    with TemporaryDirectory() as folder:
        whole = Path(folder, "whole.nettop")
        record(whole)
        content = b"".join(filtered(whole))
    if len(content) > MOST_BYTES:
        return f"the demo has {len(content):,} bytes, more than {MOST_BYTES:,}"
    DEMO.write_bytes(content)
    print(f"{DEMO}: {len(content):,} bytes")
    return f"{lost}: this machine is busy; record again" if (lost := losses(DEMO)) else None


def record(path: Path) -> None:
    """Record all lenses during the loads and the incidents."""
    words = [
        *URGENT,
        sys.executable,
        "-m",
        "nettop",
        "record",
        "--follow-namespaces",
        "--for",
        str(SECONDS),
        str(path),
    ]
    with ExitStack() as running:
        for load in [running.enter_context(made("--healthy", name)) for name in LOADS]:
            running.callback(load.terminate)
            if not (load.stdout and load.stdout.readline()):
                raise SystemExit("a load failed")
        recorder = running.enter_context(subprocess.Popen(words, cwd=ROOT))
        before = 0.0
        for incident in INCIDENTS:
            select.select([], [], [], incident.at - before)
            before = incident.at
            lasting = ("--for", str(incident.lasts), "--well", str(WELL_S))
            running.enter_context(made(incident.fault, *lasting))
        if recorder.wait():
            raise SystemExit("the recorder failed")


def made(*words: str) -> subprocess.Popen[str]:
    """Start the command that makes a fault or a load; its first line says that it is made."""
    command = [sys.executable, "-m", "tests.kernel.faults", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def losses(path: Path) -> str:
    """Return what the lenses of a recording have missed, as `27 events missed (connections)`; empty if nothing."""
    with open_recording(path) as recording:
        last = {lens: chunk.wall_ns for lens, chunk in chunks(recording) if chunk.what is What.READING}
        readings = {lens: Readings(recording, find_table(lens)[0]).at(at) for lens, at in last.items()}
    return ", ".join(
        f"{count:,} {what} missed ({lens})"
        for lens, reading in readings.items()
        if reading is not None
        for what, count in reading.now.notable_losses.items()
        if count
    )


def filtered(path: Path) -> Iterator[bytes]:
    """Yield the chunks of a recording without the rows of other programs and of the machine's own namespace."""
    written: list[bytes] = []
    with open_recording(path) as recording:
        writer = RecordingWriter(
            Sink(written.append), replace(recording.groups[0].group, marks=[], host={"name": HOST})
        )
        readings = {lens.id: Readings(recording, lens) for lens in lenses() if lens.id in recording.lenses}
        for lens, chunk in chunks(recording):
            reading = readings[lens].at(chunk.wall_ns) if chunk.what is What.READING else None
            if reading is not None:
                for events in reading.events:
                    writer.write_events(lens, only_demo(events), chunk.wall_ns)
                writer.write(without_others(reading.now))
                yield from written
                written.clear()


def chunks(recording: Recording) -> Iterator[tuple[str, Chunk]]:
    """Yield the chunks with the lens of each."""
    for number, placed in enumerate(recording.groups):
        for chunk in recording.chunks(number):
            yield placed.group.lenses[chunk.lens], chunk


def without_others(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with the demo's rows only."""
    return replace(
        snapshot,
        lost={name: count for name, count in snapshot.lost.items() if name != UNREAD},
        gaps={renamed(name): renamed(why) for name, why in snapshot.gaps.items()},
        hooks=tuple(
            replace(hook, refused=tuple((name, renamed(why)) for name, why in hook.refused))
            for hook in snapshot.hooks
        ),
        tables={name: only_demo(rows) for name, rows in snapshot.tables.items()},
        ended={
            name: Ended(tuple(map(only_demo, ended.rows)), ended.total, ended.count)
            for name, ended in snapshot.ended.items()
        },
    )


def only_demo(rows: Rows) -> Rows:
    """Return the rows about no process and no namespace, or about those of the demo; without their control groups."""
    keep = np.ones(len(rows), bool)
    for name, others in (("process", OWN), ("namespace", frozenset({OWN_NAMESPACE}))):
        field = rows.table.by_name.get(name)
        if field is not None and field.kind is Kind.TEXT:
            codes = [
                code for code, text in enumerate(rows.texts[name]) if text in others or OUTSIDE.search(text)
            ]
            keep &= ~(known(rows.array[name]) & np.isin(rows.array[name], codes))
    array = rows.array[keep]
    hidden = CONTROL_GROUPS & set(array.dtype.names or ())
    for name in hidden:
        array[name] = unknown_value(array.dtype[name])
    texts = {name: [] if name in hidden else list(map(renamed, rows.texts[name])) for name in rows.texts}
    return replace(rows, array=array, texts=texts)


_names: dict[str, str] = {}


def renamed(text: str) -> str:
    """Return a text with the names that namespaces have on a host with containers."""
    return NAMESPACE.sub(lambda found: _names.setdefault(found[0], f"pod-{len(_names) + 1}"), text)


if __name__ == "__main__":
    sys.exit(main())
