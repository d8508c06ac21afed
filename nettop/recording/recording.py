# SPDX-License-Identifier: Apache-2.0
"""A recording: one file, or those of a folder in the order of their time."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nettop.errors import NettopError, PermissionMissing, SourceFailed, Unsupported, UsageError
from nettop.recording.bundle import recording_in
from nettop.recording.chunks import Chunk, What
from nettop.recording.files import SUFFIX
from nettop.recording.marks import Mark, Marks
from nettop.recording.numbers import Damaged
from nettop.recording.reader import PlacedGroup, Readings, RecordedFile
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Lens
from nettop.writing import why_not

_REMEDY = "make one with nettop record"


class Recording:
    """The groups of one or several files, as those of one."""

    def __init__(self, files: Sequence[RecordedFile]) -> None:
        self._files = files
        self.groups: list[PlacedGroup] = []
        self.end_ns = 0
        """When it ends so far, by the wall clock."""
        self._places: list[tuple[RecordedFile, int]] = []
        self._size = 0
        self._findings = Readings(self, FINDINGS)
        self._newest_marks = Marks()
        self._marked_ns = 0
        self.refresh()

    def refresh(self) -> None:
        """Find what has been added."""
        size = sum(file.size for file in self._files)
        if size == self._size:
            return
        self._size, groups = size, len(self.groups)
        for file in self._files:
            known = sum(each is file for each, _ in self._places)
            file.refresh()
            self._places += [(file, number) for number in range(known, len(file.groups))]
        self._places.sort(key=lambda place: place[0].groups[place[1]].wall_ns)
        self.groups = [file.groups[number] for file, number in self._places]
        if len(self.groups) > groups:
            self._newest_marks = Marks()
        if self.groups:
            last = max((chunk.wall_ns for chunk in self.chunks(-1)), default=0)
            self.end_ns = max(self.end_ns, self.groups[-1].wall_ns, last)
            self._mark_newest()

    def chunks(self, number: int, after: int = 0) -> Iterator[Chunk]:
        """Yield the chunks of a group but its first, up to the first that is damaged or unfinished; those that begin
        `after` so many bytes."""
        file, place = self._places[number]
        return file.chunks(place, after)

    @property
    def damage(self) -> list[str]:
        """What cannot be read, and where."""
        return [f"at byte {at:,}: {what}" for file in self._files for at, what in sorted(file.damage.items())]

    @property
    def lenses(self) -> frozenset[str]:
        """The ids of the lenses that have readings."""
        return frozenset(lens for group in self.groups for lens in group.group.lenses)

    @property
    def host(self) -> str:
        """The name of the host."""
        return safe_text(self.groups[-1].group.host.get("name", ""))

    @property
    def begin_ns(self) -> int:
        """When it begins, by the wall clock."""
        return self.groups[0].wall_ns

    @property
    def marks(self) -> list[Mark]:
        """When something was wrong."""
        ended = [mark for group in self.groups[1:] for mark in group.group.marks]
        return ended + self._newest_marks.so_far()

    def _mark_newest(self) -> None:
        """Find the marks of the last group, which only the next one will have."""
        for moment in self.moments(-1, FINDINGS.id):
            if moment > self._marked_ns:
                self._marked_ns = moment
                with suppress(Damaged):
                    reading = self._findings.at(moment)
                    if reading is not None:
                        self._newest_marks.add(reading.now)

    def first_moment(self, lens: Lens, from_ns: int) -> int:
        """Return when a lens was first read from a moment on. Raise Unsupported if it was not."""
        first = next(self.moments_between(lens, from_ns, self.end_ns), None)
        if first is None:
            recorded = ", ".join(sorted(self.lenses))
            raise Unsupported(f"{lens.title}: not in this recording", f"it has {recorded}")
        return first

    def moments_between(self, lens: Lens, begin_ns: int, end_ns: int) -> Iterator[int]:
        """Yield when a lens was read, from one moment to another, both included."""
        first, last = (
            bisect_right(self.groups, moment, key=lambda group: group.wall_ns)
            for moment in (begin_ns, end_ns)
        )
        for number in range(max(0, first - 1), last):
            yield from (ns for ns in self.moments(number, lens.id) if begin_ns <= ns <= end_ns)

    def moments(self, number: int, lens: str) -> list[int]:
        """Return when a lens was read in a group."""
        lenses = self.groups[number].group.lenses
        if lens not in lenses:
            return []
        chunks = (chunk for chunk in self.chunks(number) if chunk.lens == lenses.index(lens))
        return [chunk.wall_ns for chunk in chunks if chunk.what is What.READING]


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """Open a recording, a folder of recordings, or the recording in a bundle; close it at the end.

    Raise UsageError if there is none, SourceFailed if it cannot be read.
    """
    with ExitStack() as opened:
        files = []
        for each in _paths(path):
            descriptor = _open(each)
            opened.callback(os.close, descriptor)
            if (copied := _from_bundle(each, descriptor)) is not None:
                opened.callback(os.close, copied)
                descriptor = copied
            files.append(RecordedFile(descriptor))
        recording = Recording(files)
        if not recording.groups:
            why = "; ".join(recording.damage) or "it has no reading"
            raise SourceFailed(f"{path} is no recording: {why}", _REMEDY)
        yield recording


def _paths(path: Path) -> list[Path]:
    try:
        names = os.listdir(path)
    except (NotADirectoryError, FileNotFoundError):
        return [path]
    except OSError as error:
        raise _unreadable(path, error) from error
    found = sorted(path / name for name in names if name.endswith(SUFFIX))
    if not found:
        raise UsageError(f"{path} has no recordings (*{SUFFIX})", _REMEDY)
    return found


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UsageError(f"there is no recording {path}", _REMEDY) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _from_bundle(path: Path, descriptor: int) -> int | None:
    """Return the descriptor of the recording in a bundle; None if this is none."""
    try:
        return recording_in(descriptor)
    except OSError as error:
        raise SourceFailed(
            f"the recording in {path} cannot be unpacked: {why_not(error)}",
            f"free space in {tempfile.gettempdir()}, or set TMPDIR",
        ) from error


def _unreadable(path: Path, error: OSError) -> NettopError:
    what = f"{path} cannot be read: {why_not(error)}"
    if isinstance(error, PermissionError):
        return PermissionMissing(what, "run nettop with sudo")
    return SourceFailed(what, "check its file system")
