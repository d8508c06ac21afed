# SPDX-License-Identifier: Apache-2.0
"""`nettop record` on the running kernel: a short recording of all lenses, read back."""

import os
import re
import signal
import socket
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nettop.engine.session import Session
from nettop.engine.source import probe_of
from nettop.errors import ExitCode
from nettop.kernel.host.facts import Host
from nettop.output.record import run_record
from nettop.process.interrupts import Requests
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.recording.chunks import Decompressor, What
from nettop.recording.reader import Reading, Readings, RecordedFile
from nettop.recording.recording import Recording
from nettop.settings.record import RecordSettings
from nettop.snapshots import lenses
from nettop.snapshots.connections import EVENTS
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.snapshot import Frame, Snapshot

from .command import Running, nettop
from .lab import until

pytestmark = pytest.mark.kernel

RECORDED = [lens for lens in lenses() if lens.id != "collector"]
BYTES = 70_001
FAR_FUTURE_NS = 1 << 62


def is_recording(path: Path, readings: int = 1) -> bool:
    """Return whether every lens has this many readings."""
    if not path.exists() or not path.stat().st_size:
        return False
    found = Counter(chunk for chunk, what in chunks(path) if what is What.READING)
    return len(found) == len(RECORDED) and min(found.values()) >= readings


def chunks(path: Path) -> list[tuple[str, What]]:
    """Return the lens and the kind of each chunk."""
    with path.open("rb") as file:
        recorded = RecordedFile(file.fileno())
        return [
            (placed.group.lenses[chunk.lens], chunk.what)
            for number, placed in enumerate(recorded.groups)
            for chunk in recorded.chunks(number)
        ]


def last_reading(path: Path, lens: Lens) -> Reading:
    """Return the last reading of a lens, with all events before it."""
    with path.open("rb") as file:
        readings = Readings(RecordedFile(file.fileno()), lens)
        begin = readings.at(0)
        assert begin is None
        last = readings.at(FAR_FUTURE_NS)
    assert last is not None
    return last


def test_all_lenses_are_recorded(tmp_path: Path) -> None:
    """Each lens can be read back with every table; a connection has its bytes, its events come once."""
    path = tmp_path / "a.nettop"
    with Running("record", "--interval", "0.5", str(path), cwd=tmp_path) as recorder:
        until(lambda: is_recording(path) or recorder.process.poll() is not None, "every lens is recorded")
        assert recorder.process.poll() is None, recorder.errors()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        near.sendall(b"n" * BYTES)
        port, received = near.getsockname()[1], 0
        while received < BYTES:
            received += len(far.recv(1 << 16))
        near.close()
        far.close()
        count = Counter(chunks(path))
        until(lambda: is_recording(path, max(count.values()) + 2), "another reading of each")
        assert recorder.end(signal.SIGINT) == 0
        said = recorder.errors()
    for lens in RECORDED:
        last = last_reading(path, lens)
        unavailable = {table.name for table in lens.tables if last.now.why_unavailable(table) is not None}
        wanted = {table.name for table in lens.tables if not table.append} - unavailable
        assert wanted - last.now.tables.keys() <= {"firewall"}, (lens.id, last.now.hooks)
        counted = sum(found == (lens.id, What.READING) for found in chunks(path))
        assert re.search(rf"\b{counted} readings of [a-z, ]*\b{lens.id}\b", said), said
    events = np.concatenate([batch.array for batch in last_reading(path, RECORDED[0]).events])
    ours = events[(events["local_port"] == port) | (events["remote_port"] == port)]
    labels = EVENTS.by_name["event"].labels
    assert Counter(labels[code] for code in ours["event"]) == {"connect": 1, "accept": 1, "close": 2}
    assert BYTES in ours["bytes_sent"]
    assert f"{len(events)} connections.events" in said


def values(snapshot: Snapshot, table: Table) -> dict[str, list[object]]:
    """Return all values of a table by field; texts as text, as the source goes on adding to its list of texts."""
    view = View(Frame(snapshot), replace(text_query(table), all_rows=True))
    return {field.name: view.values(field.name, np.arange(view.size)) for field in table.stored}


def test_what_is_recorded_is_what_was_read(tmp_path: Path) -> None:
    """Every reading of every lens, taken from the running kernel: field by field."""
    path, taken, requests = tmp_path / "a.nettop", {}, Requests()
    with Session(0.5, partial(probe_of, host=Host())) as session:

        def note() -> None:
            for lens in RECORDED:
                frame = session.bus.frame(lens.id)
                if frame is not None:
                    taken[lens.id, frame.now.wall_ns] = frame.now
            if min(Counter(lens for lens, _ in taken).get(lens.id, 0) for lens in RECORDED) >= 4:
                requests.end()

        session.bus.subscribe(note)
        lens_ids = tuple(lens.id for lens in RECORDED)
        assert (
            run_record(
                RecordSettings(path=str(path), lenses=lens_ids, interval_s=0.5), session, requests, None, None
            )
            == 0
        )
    with path.open("rb") as file:
        recording = Recording([RecordedFile(file.fileno())])
        for lens in RECORDED:
            moments = list(recording.moments_between(lens, recording.begin_ns, recording.end_ns))
            readings = Readings(recording, lens)
            assert len(moments) >= 4
            for moment in moments:
                reading = readings.at(moment)
                assert reading is not None
                for table in lens.tables:
                    assert values(reading.now, table) == values(taken[lens.id, moment], table)


def test_redacted(tmp_path: Path) -> None:
    """No process, address or host that the kernel names is in a redacted recording, but the traffic is; a bundle of it
    has doctor's report only if this host is still named."""
    path, name = tmp_path / "a.nettop", "sekrit-process"
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    try:
        comm.write_text(name)
        with (
            socket.create_server(("127.66.77.88", 0)) as listener,
            Running("record", "--redact", "--interval", "0.5", str(path), cwd=tmp_path) as recorder,
            socket.create_connection(listener.getsockname()) as near,
            listener.accept()[0] as far,
        ):
            near.sendall(b"x")
            assert far.recv(1) == b"x"
            until(
                lambda: is_recording(path, 3) or recorder.process.poll() is not None, "every lens is recorded"
            )
            assert recorder.process.poll() is None, recorder.errors()
            assert recorder.end(signal.SIGTERM) == 0
    finally:
        comm.write_text(before.strip())
    with path.open("rb") as file:
        recorded = RecordedFile(file.fileno())
        content = b"".join(decompressed(recorded))
    assert b'"proc-' in content
    assert name.encode() not in content
    assert os.uname().nodename not in recorded.groups[0].group.host.values()
    made = nettop("bundle", str(path), "-o", str(tmp_path / "b"))
    assert made.returncode == ExitCode.DONE, made.stderr
    with tarfile.open(tmp_path / "b") as archive:
        assert "nettop-bundle/doctor.txt" not in archive.getnames()


def decompressed(file: RecordedFile) -> Iterator[bytes]:
    """Yield all that is in a recording."""
    for number, placed in enumerate(file.groups):
        yield str(placed.group).encode()
        streams: dict[int, Decompressor] = {}
        for chunk in file.chunks(number):
            yield streams.setdefault(chunk.lens, Decompressor()).decompress(chunk)
