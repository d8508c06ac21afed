# SPDX-License-Identifier: Apache-2.0
"""`nettop record` over scripted sources, and what it wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nettop.engine.session import Session
from nettop.errors import ExitCode
from nettop.output.record import run_record
from nettop.recording.chunks import Decompressor, What
from nettop.recording.reader import RecordedFile
from nettop.recording.readings import ReadingReader
from nettop.settings import MAX_INTERVAL_S
from nettop.settings.record import RecordSettings
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.snapshot import Snapshot
from tests.builders.harness import Script, Step
from tests.builders.in_thread import DEADLINE_S, InThread, until
from tests.unit.build import WALL_NS, example_rows
from tests.unit.scripted import Scripted, steps
from tests.unit.woken import Woken

Sources = dict[str, Scripted | Script]


class Recording(InThread):
    """`nettop record` in a thread, over scripted sources that are read only at the start and on request."""

    def __init__(
        self,
        path: str,
        connections: Woken,
        stdout: Any = None,
        *,
        drops: Sequence[Step] = (),
        findings: Sequence[Step] = (Snapshot("findings", WALL_NS, 1, {}),),
        redaction_key: bytes | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._key = redaction_key
        self.published: list[Snapshot] = []
        self._sources: Sources = {
            "connections": connections,
            "findings": Script(findings),
        }
        if drops:
            self._sources["drops"] = Script(drops)
        self._settings = RecordSettings(path=path, lenses=tuple(self._sources), **settings)
        self._stdout = stdout
        self.session: Session | None = None

    def run(self) -> ExitCode:
        """Record until the end."""
        with Session(MAX_INTERVAL_S, self._sources.__getitem__, together=self._sources) as session:
            session.bus.subscribe(self._note)
            self.session = session
            return run_record(
                self._settings, session, self.requests, self._stdout, self.stderr, redaction_key=self._key
            )

    def _note(self) -> None:
        assert self.session is not None
        frame = self.session.bus.frame("connections")
        if frame is not None and (not self.published or frame.now is not self.published[-1]):
            self.published.append(frame.now)

    def refresh(self) -> None:
        """Have the sources read once more."""
        until(lambda: self.published)
        assert self.session is not None
        self.session.sample_now().result(DEADLINE_S)

    def end(self) -> str:
        """Request the end, and return the text of standard error."""
        until(lambda: self.published)
        self.requests.end()
        self.wait()
        return self.stderr.getvalue()


@contextmanager
def opened(path: Path) -> Iterator[RecordedFile]:
    """Open a recording."""
    with path.open("rb") as file:
        yield RecordedFile(file.fileno())


def readings(path: Path) -> list[Snapshot]:
    """Return every reading of the connections."""
    found = []
    with opened(path) as recorded:
        for number, placed in enumerate(recorded.groups):
            reader, decompressor = ReadingReader(CONNECTIONS), Decompressor()
            for chunk in recorded.chunks(number):
                if placed.group.lenses[chunk.lens] == "connections":
                    content = decompressor.decompress(chunk)
                    if chunk.what is What.READING:
                        reader.read(content)
                        found.append(reader.snapshot())
                    else:
                        reader.read_events(content)
        assert recorded.damage == {}
    return found


def ids(snapshots: list[Snapshot]) -> list[list[int]]:
    """Return the sockets of each reading, by key."""
    return [snapshot.tables["sockets"].array["id"].tolist() for snapshot in snapshots]


def three_readings() -> Woken:
    """Return a source with three readings."""
    return Woken(steps(example_rows(3), example_rows(5), example_rows(2)))


def record_to(path: str, **settings: Any) -> str:
    """Record one reading and the last, and return the text of standard error."""
    with Recording(path, three_readings(), **settings) as recording:
        text = recording.end()
    assert recording.exit is ExitCode.DONE, recording.exit
    return text
