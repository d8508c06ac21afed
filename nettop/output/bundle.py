# SPDX-License-Identifier: Apache-2.0
"""The bundle frontend: a part of a recording, its findings and doctor's report, in one file."""

from __future__ import annotations

import heapq
import io
import shlex
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import IO, NamedTuple, TextIO

from nettop import version_of_build
from nettop.diagnostics import StatusLine
from nettop.errors import NettopError, UsageError
from nettop.output.check import findings_between, report_found, unwatched_in
from nettop.output.record import host_facts
from nettop.query.units import plural
from nettop.recording.bundle import RECORDING, write_bundle
from nettop.recording.chunks import Group
from nettop.recording.moments import time_text
from nettop.recording.numbers import Damaged
from nettop.recording.reader import Reading, Readings, RecordedFile
from nettop.recording.recording import Recording
from nettop.recording.redaction.redactor import Redactor
from nettop.recording.writer import RecordingWriter, Sink
from nettop.settings.check import CheckSettings
from nettop.snapshots import lenses
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Snapshot
from nettop.writing import writing

_FINDINGS, _DOCTOR, _README = "findings.txt", "doctor.txt", "README.txt"


class BundleParts(NamedTuple):
    """Settings of `nettop bundle`: which part of the recording it has, the file's name, and what its texts call it.

    A name given to the file may say whom it is from, which the texts of a redacted bundle must not.
    """

    name: str
    called: str
    begin_ns: int
    end_ns: int
    redactor: Redactor | None = None


def is_from_here(recording: Recording) -> bool:
    """Return whether the end of a recording is from this host: of this boot, or of the same name."""
    here, there = host_facts(), recording.groups[-1].group.host
    return any(there.get(name, "") == value for name, value in here.items() if name in ("boot_id", "name"))


def run_bundle(
    settings: BundleParts, recording: Recording, doctor: str | None, file: IO[bytes], stderr: TextIO | None
) -> None:
    """Write the bundle; `doctor` is its report, None if the recording is from elsewhere or the report not wanted.

    Raise UsageError if nothing was recorded in that time, NettopError if the file cannot be written, and
    BrokenPipeError if its reader is gone.
    """
    status = StatusLine(stderr)
    cutter = Cutter(recording, settings.begin_ns, settings.end_ns, settings.redactor)
    if not cutter.readings:
        raise UsageError(
            f"there are no readings {_span(settings)}",
            f"the recording is from {time_text(recording.begin_ns)} to {time_text(recording.end_ns)} UTC",
        )
    remedy = f"free space in {tempfile.gettempdir()}, or set TMPDIR"
    with writing("a temporary file", remedy), tempfile.TemporaryFile() as part:
        cutter.copy_to(Sink(part.write), _progress(settings, status))
        part.flush()
        members: dict[str, str | IO[bytes]] = {
            _README: _about(settings, recording, cutter, has_doctor=doctor is not None),
            _FINDINGS: _findings(settings, part),
            **({} if doctor is None else {_DOCTOR: doctor}),
            RECORDING: part,
        }
        with writing(settings.name, "choose another file for -o"):
            write_bundle(file, members, settings.end_ns)
            file.flush()
    status.report(_summary(settings, recording, cutter))


def _progress(settings: BundleParts, status: StatusLine) -> Callable[[int], None]:
    length = max(1, settings.end_ns - settings.begin_ns)

    def reached(wall_ns: int) -> None:
        done = (wall_ns - settings.begin_ns) / length
        status.show(f"copying {time_text(wall_ns)}  {done:.0%}", done)

    return reached


def _findings(settings: BundleParts, part: IO[bytes]) -> str:
    """Return what `nettop check --from` says of the part."""
    text = io.StringIO()
    recording = Recording([RecordedFile(part.fileno())])
    try:
        found = findings_between(recording, settings.begin_ns, settings.end_ns)
    except NettopError as error:
        return f"{error.what}\n"
    command = f"nettop replay {shlex.quote(settings.called)}"
    lacking = unwatched_in(recording, settings.begin_ns, settings.end_ns)
    report_found(CheckSettings(), found, "", text, text, lacking=lacking, command=command)
    return text.getvalue() or f"nothing found {_span(settings)}\n"


def _about(settings: BundleParts, recording: Recording, cutter: Cutter, *, has_doctor: bool) -> str:
    """Return what is in the bundle."""
    host, redactor = recording.host or "an unnamed host", settings.redactor
    shown = host if redactor is None else redactor.host(host)
    doctor = (
        "nettop doctor on this host when the bundle was made, without the self-test"
        if has_doctor
        else "left out: it was not wanted, or the recording is from another host, or redacted already"
    )
    lines = [
        f"{settings.called}: {shown} {_span(settings)}, by nettop {version_of_build()}",
        "",
        f"{RECORDING}  {', '.join(sorted(cutter.readings))}; nettop replay {settings.called} shows it",
        f"{_FINDINGS}      what nettop check --from says of it",
        f"{_DOCTOR}        {doctor}",
    ]
    if redactor is not None:
        lines += [
            "",
            "Addresses, names and texts are replaced, always by the same ones. Numbers and times are not.",
        ]
    if damage := _damage(recording, cutter):
        redacted = damage if redactor is None else map(redactor.texts.scrubbed, damage)
        lines += ["", "The recording is damaged, and this is not in the bundle:", *redacted]
    return "\n".join([*lines, ""])


def _damage(recording: Recording, cutter: Cutter) -> list[str]:
    return [
        *recording.damage,
        *(f"{count} readings of {lens}" for lens, count in sorted(cutter.damaged.items())),
    ]


def _summary(settings: BundleParts, recording: Recording, cutter: Cutter) -> str:
    count = cutter.readings.total()
    damaged = ", without what is damaged" if _damage(recording, cutter) else ""
    redacted = ", redacted" if settings.redactor is not None else ""
    return (
        f"{count} {plural('reading', count)} {_span(settings)}{redacted}{damaged}; written to {settings.name}"
    )


def _span(settings: BundleParts) -> str:
    return f"from {time_text(settings.begin_ns)} to {time_text(settings.end_ns)} UTC"


# --- a part of a recording ------------------------------------------------------------------------------------


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
        numbered = ([(moment, number) for moment in moments] for number, moments in enumerate(self._moments))
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
