# SPDX-License-Identifier: Apache-2.0
"""A part of a recording as a recording of its own."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from nettop.recording.chunks import Group
from nettop.recording.numbers import Damaged
from nettop.recording.reader import Reading, Readings
from nettop.recording.recording import Recording
from nettop.recording.redaction.redactor import Redactor
from nettop.recording.writer import RecordingWriter, Sink
from nettop.snapshots import lenses
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Snapshot


class Cutter:
    """Copies what was recorded from one moment to another, both included. `readings` counts the readings by lens,
    `damaged` those that cannot be read. Lenses and columns that this version does not know are left out."""

    def __init__(
        self, recording: Recording, begin_ns: int, end_ns: int, redactor: Redactor | None = None
    ) -> None:
        self._recording = recording
        self._begin_ns, self._end_ns = begin_ns, end_ns
        self._redactor = redactor
        self._moments = [list(recording.moments_between(lens, begin_ns, end_ns)) for lens in lenses()]
        self._read: dict[str, Readings] = {}
        self._last: dict[str, Snapshot] = {}
        self._origin: Group | None = None
        self._writer: RecordingWriter | None = None
        self.readings = Counter(
            {lens.id: 0 for lens, moments in zip(lenses(), self._moments, strict=True) if moments}
        )
        self.damaged: Counter[str] = Counter()

    def copy_to(self, sink: Sink, reached: Callable[[int], None]) -> None:
        """Copy it, and pass each moment to `reached`. Raise what the sink raises."""
        numbered = ([(moment, number) for moment in each] for number, each in enumerate(self._moments))
        for moment, number in heapq.merge(*numbered):
            self._copy(sink, lenses()[number], moment)
            reached(moment)
        for lens in lenses():
            reading = self._at(lens, self._end_ns) if lens.id in self._last else None
            if reading is not None and self._writer is not None:
                self._write_events(self._writer, lens, reading, self._end_ns)

    def _copy(self, sink: Sink, lens: Lens, moment: int) -> None:
        """Copy a reading, preceded by its events."""
        reading = self._at(lens, moment)
        if reading is None or reading.now is self._last.get(lens.id):
            return
        writer = self._writer_at(sink, moment)
        if (
            lens.id in self._last or self._begin_ns <= self._recording.begin_ns
        ):  # else they precede the beginning
            self._write_events(writer, lens, reading, moment)
        self._last[lens.id] = reading.now
        writer.write(reading.now)
        self.readings[lens.id] += 1

    def _at(self, lens: Lens, moment: int) -> Reading | None:
        readings = self._read.setdefault(lens.id, Readings(self._recording, lens))
        try:
            return readings.at(moment)
        except Damaged:
            self.damaged[lens.id] += 1
            return None

    def _write_events(self, writer: RecordingWriter, lens: Lens, reading: Reading, moment: int) -> None:
        for batch in reading.events:
            writer.write_events(lens.id, batch, moment)

    def _writer_at(self, sink: Sink, moment: int) -> RecordingWriter:
        """Return the writer; a new one if what was recorded then comes from elsewhere, or after another boot."""
        groups = self._recording.groups
        number = bisect_right(groups, moment, key=lambda group: group.wall_ns) - 1
        origin = replace(groups[number].group, lenses=tuple(self.readings), previous=0, marks=[])
        if self._writer is None or origin != self._origin:
            self._origin, self._writer = origin, RecordingWriter(sink, origin, self._redactor)
        return self._writer
