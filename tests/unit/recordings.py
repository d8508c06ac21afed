# SPDX-License-Identifier: Apache-2.0
"""Recordings made of prepared snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nettop.recording.chunks import Group
from nettop.recording.writer import RecordingWriter, Sink
from nettop.snapshots.snapshot import Rows, Snapshot

BEGIN_NS = 1_795_874_400_000_000_000
"""2026-11-28 14:00:00 UTC."""
SECOND_NS = 1_000_000_000


def at_second(snapshot: Snapshot, second: float) -> Snapshot:
    """Return the snapshot as one that was taken so long after the beginning."""
    passed_ns = round(second * SECOND_NS)
    tables = {name: replace(rows, taken_ns=SECOND_NS + passed_ns) for name, rows in snapshot.tables.items()}
    return replace(snapshot, wall_ns=BEGIN_NS + passed_ns, boot_ns=SECOND_NS + passed_ns, tables=tables)


def record(
    path: Path, snapshots: Sequence[Snapshot], events: dict[int, Rows] | None = None, host: str = "web-1"
) -> Path:
    """Write a recording of these snapshots, or go on with one as another run; `events` come before the snapshots at
    their places."""
    with path.open("ab") as file:
        sink = Sink(file.write, path.stat().st_size)
        writer = RecordingWriter(sink, Group((snapshots[0].lens,), 1.0, "0", {"name": host}))
        for at, snapshot in enumerate(snapshots):
            if events and at in events:
                writer.write_events(snapshot.lens, events[at], snapshot.wall_ns)
            writer.write(snapshot)
    return path
