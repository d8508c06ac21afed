# SPDX-License-Identifier: Apache-2.0
"""A recording: one file, or those of a folder in the order of their time."""

from __future__ import annotations

import os
import stat
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

from nettop.errors import NettopError, PermissionMissing, SourceFailed, Unsupported, UsageError
from nettop.recording.bundle import is_packed, recording_in, unpacker
from nettop.recording.chunks import Chunk, Decompressor, What
from nettop.recording.files import SUFFIX
from nettop.recording.marks import Mark, Marks
from nettop.recording.moments import time_text
from nettop.recording.numbers import Damaged
from nettop.recording.reader import PlacedGroup, RecordedFile, moments_before, moments_in
from nettop.recording.readings import ReadingReader
from nettop.recording.spool import PipeSpool
from nettop.snapshots import lenses
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Lens
from nettop.writing import why_not

_REMEDY = "name a recording; nettop record FILE makes one"


class _Newest:
    """What was read of the last group: when it ends so far, and its marks, which only the next group will have."""

    def __init__(self, placed: PlacedGroup) -> None:
        self.end_ns = placed.wall_ns
        self.marks = Marks()
        names = placed.group.lenses
        self._findings = names.index(FINDINGS.id) if FINDINGS.id in names else None
        self._reader, self._decompressor = ReadingReader(FINDINGS), Decompressor()
        self._bytes = 0

    def read(self, chunks: Callable[[int], Iterator[Chunk]]) -> None:
        """Read on in the group's `chunks`, those that begin after so many bytes."""
        for chunk in chunks(self._bytes):
            self._bytes += chunk.file_bytes
            self.end_ns = max(self.end_ns, chunk.wall_ns)
            if chunk.lens == self._findings:
                self._mark(chunk)

    def _mark(self, chunk: Chunk) -> None:
        try:
            content = self._decompressor.decompress(chunk)
            if chunk.what is What.READING:
                self._reader.read(content)
                self.marks.add(self._reader.snapshot())
        except Damaged:
            self._findings = None  # nothing can follow without this chunk


class Recording:
    """The groups of one or several files, as those of one; of one `spool`, while it comes through a pipe."""

    def __init__(self, files: Sequence[RecordedFile], spool: PipeSpool | None = None) -> None:
        self._files = files
        self._spool = spool
        self.unread: set[str] = set()
        """The tables and columns found so far that this version does not know."""
        self.groups: list[PlacedGroup] = []
        self.end_ns = 0
        """When it ends so far, by the wall clock."""
        self._places: list[tuple[RecordedFile, int]] = []
        self._ended: dict[tuple[RecordedFile, int], list[Mark]] = {}
        """Marks of groups that the following one does not have."""
        self._size = 0
        self._moments: dict[str, tuple[int, int, list[int]]] = {}
        """When each lens was read in the group that was asked for last, by its number and the size then."""
        self._newest: _Newest | None = None
        self.refresh()

    def refresh(self) -> None:
        """Find what has been added."""
        size = sum(file.size for file in self._files)
        if size == self._size:
            return
        self._size = size
        for file in self._files:
            file.refresh()
        if sum(len(file.groups) for file in self._files) > len(self.groups):
            self._place_groups()
        if self._newest is not None:
            self._newest.read(partial(self.chunks, -1))
            self.end_ns = self._newest.end_ns

    def _place_groups(self) -> None:
        """Order the groups of all files by time. Other threads may read the groups meanwhile."""
        files = sorted((file for file in self._files if file.groups), key=lambda file: file.groups[0].wall_ns)
        places = [(file, number) for file in files for number in range(len(file.groups))]
        last, self._places = self._places[-1:], places
        self.groups = _in_order([file.groups[number] for file, number in places], self._raw_end_of)
        if last != places[-1:]:
            self._newest = _Newest(self.groups[-1])

    def _raw_begin_of(self, number: int) -> int:
        """Return when a group begins, by the clock as it was then."""
        file, place = self._places[number]
        return file.groups[place].wall_ns

    def _raw_end_of(self, number: int) -> int:
        """Return when a group ends, by the clock as it was then."""
        file, place = self._places[number]
        return max([file.groups[place].wall_ns, *(chunk.wall_ns for chunk in file.chunks(place))])

    # --- recordings that grow -------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """False while it comes through a pipe. A file may grow too, but nobody knows."""
        return self._spool is None or self._spool.is_over

    @property
    def cut_short(self) -> str:
        """Why the rest of a pipe could not be stored; empty if it could."""
        return "" if self._spool is None else self._spool.cut_short

    def follow(self) -> None:
        """Store what comes through the pipe from now on, in a thread."""
        if self._spool is not None:
            self._spool.start()

    def wait_for_more(self) -> bool:
        """Wait until more comes through the pipe than was found; return False if nothing will."""
        return self._spool is not None and self._spool.wait_beyond(self._size)

    def read_all(self) -> None:
        """Store all that comes through the pipe, up to its end."""
        if self._spool is not None:
            self._spool.copy_all()
            self.refresh()

    # --- its parts ------------------------------------------------------------------------------------------

    def chunks(self, number: int, after: int = 0) -> Iterator[Chunk]:
        """Yield the chunks of a group but its first, up to the first that is damaged or unfinished; those that begin
        `after` so many bytes."""
        file, place = self._places[number]
        shift_ns = self.groups[number].shift_ns
        chunks = file.chunks(place, after)
        if not shift_ns:
            return chunks
        return (replace(chunk, wall_ns=chunk.wall_ns + shift_ns) for chunk in chunks)

    def note_damage(self, number: int, what: str) -> None:
        """Remember that a group is damaged, though its chunks are whole."""
        file, place = self._places[number]
        file.note_damage(place, what)

    def damage_at(self, number: int, after: int) -> str:
        """Return why the chunk of a group that begins `after` so many bytes cannot be read; empty if it can."""
        file, place = self._places[number]
        return file.damage_at(place, after)

    @property
    def damage(self) -> list[str]:
        """What was found so far that cannot be read, and where."""
        return [f"at byte {at:,}: {what}" for file in self._files for at, what in sorted(file.damage.items())]

    @property
    def damaged_file(self) -> str:
        """The name of the first file in a folder that has damage; empty if it is no folder."""
        return next((file.name for file in self._files if file.damage), "")

    @property
    def lenses(self) -> frozenset[str]:
        """The ids of the lenses that have readings."""
        return frozenset(lens for group in self.groups for lens in group.group.lenses)

    @property
    def host(self) -> str:
        """The name of the host."""
        return self._host_of(-1)

    def _host_of(self, number: int) -> str:
        return safe_text(self.groups[number].group.host.get("name", ""))

    def overlapping_hosts(self) -> set[str]:
        """Return the names of two hosts that were recorded at the same time; none if a host only got another name."""
        for number in range(1, len(self.groups)):
            names = {self._host_of(number - 1), self._host_of(number)}
            if len(names) > 1 and self._raw_end_of(number - 1) > self._raw_begin_of(number):
                return names
        return set()

    @property
    def begin_ns(self) -> int:
        """When it begins, by the wall clock."""
        return self.groups[0].wall_ns

    @property
    def marks(self) -> list[Mark]:
        """When something was wrong."""
        ended = [mark for number in range(len(self.groups) - 1) for mark in self._marks_of(number)]
        return ended + ([] if self._newest is None else self._newest.marks.so_far())

    def _marks_of(self, number: int) -> list[Mark]:
        """Return the marks of a group that others follow: the next one has them, if the same writer wrote it."""
        following, shift_ns = self.groups[number + 1].group, self.groups[number].shift_ns
        marks = following.marks
        if not following.follows:
            place = self._places[number]
            if place not in self._ended:
                ended = _Newest(self.groups[number])
                ended.read(partial(place[0].chunks, place[1]))
                self._ended[place] = ended.marks.so_far()
            marks = self._ended[place]
        return [Mark(begin_ns + shift_ns, end_ns + shift_ns, worst) for begin_ns, end_ns, worst in marks]

    def refusal(self, lens: Lens) -> Unsupported:
        """Return why a lens has no readings."""
        unknown = [f"{lens.title}: not in this recording", ""]
        cause, remedy = self.groups[-1].group.failures.get(lens.id, unknown)
        recorded = ", ".join(known.id for known in lenses() if known.id in self.lenses - {lens.id})
        return Unsupported(cause, remedy or f"it has {recorded}")

    def expects(self, lens: Lens) -> bool:
        """Return whether a lens has no readings yet, but was to be recorded."""
        is_read = next(self.moments_between(lens, self.begin_ns, self.end_ns), None) is not None
        return not is_read and lens.id in self.lenses and lens.id not in self.groups[-1].group.failures

    def first_moment(self, lens: Lens, from_ns: int) -> int:
        """Return when a lens was first read from a moment on. Raise UsageError if it was not, Unsupported if it never
        was."""
        first = next(self.moments_between(lens, from_ns, self.end_ns), None)
        if first is not None:
            return first
        last = next(self.moments_before(lens, self.end_ns), None)
        if last is None:
            raise self.refusal(lens)
        raise UsageError(
            f"{lens.title} was not read from {time_text(from_ns)} on",
            f"choose a moment up to {time_text(last)}",
        )

    def restarted_between(self, begin_ns: int, end_ns: int) -> int | None:
        """Return when its writer was first started anew between two moments, so that counts begin anew too; None if it
        was not."""
        return next(
            (
                placed.wall_ns
                for placed in self.groups[1:]
                if begin_ns < placed.wall_ns <= end_ns and not placed.group.follows
            ),
            None,
        )

    def moments_before(self, lens: Lens, end_ns: int) -> Iterator[int]:
        """Yield when a lens was read up to a moment, the last one first."""
        return moments_before(self, lens, end_ns)

    def moments_between(self, lens: Lens, begin_ns: int, end_ns: int) -> Iterator[int]:
        """Yield when a lens was read, from one moment to another, both included. A reading that claims to be older than
        the one before, as none is, is left out."""
        first, last = (
            bisect_right(self.groups, moment, key=lambda group: group.wall_ns)
            for moment in (begin_ns, end_ns)
        )
        for number in range(max(0, first - 1), last):
            for moment in self.moments(number, lens.id):
                if begin_ns <= moment <= end_ns:
                    yield (begin_ns := moment)

    def moments(self, number: int, lens: str) -> list[int]:
        """Return when a lens was read in a group."""
        place = number, self._size
        if self._moments.get(lens, (0, 0, []))[:2] != place:
            self._moments[lens] = *place, moments_in(self, number, lens)
        return self._moments[lens][2]


def _in_order(groups: list[PlacedGroup], end_of: Callable[[int], int]) -> list[PlacedGroup]:
    """Return the groups with times in their order: where the clock was set back, those before have the times of the
    later clock. `end_of` returns when one of them ends.
    """
    shift_ns, ordered = 0, []
    for number in range(len(groups) - 1, -1, -1):
        placed = groups[number]
        ordered.append(replace(placed, wall_ns=max(0, placed.wall_ns + shift_ns), shift_ns=shift_ns))
        set_back_ns = placed.group.set_back_ns
        if number and not set_back_ns and placed.wall_ns < groups[number - 1].wall_ns:
            # Its writer did not know: it was started since.
            set_back_ns = end_of(number - 1) - placed.wall_ns + round(placed.group.interval_s * 1e9)
        shift_ns -= set_back_ns
    return ordered[::-1]


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """Open a recording, a folder of recordings, or the recording in a bundle; close it at the end.

    Raise UsageError if there is none, SourceFailed if it cannot be read.
    """
    with ExitStack() as opened:
        files = []
        for part_path in _paths(path):
            descriptor = _open(part_path)
            opened.callback(os.close, descriptor)
            if (copied := _from_bundle(part_path, descriptor)) is not None:
                opened.callback(os.close, copied)
                descriptor = copied
            files.append(RecordedFile(descriptor, "" if part_path == path else part_path.name))
        if len(files) == 1:
            _refuse_compressed(descriptor, str(path), lambda command: f"{command} {quote(str(path))}")
        yield _checked(Recording(files), str(path))


@contextmanager
def open_stream(descriptor: int, name: str, report_waiting: Callable[[], None]) -> Iterator[Recording]:
    """Open the recording in a pipe or a file, once it has a reading, or that in a bundle; close it at the end.

    `report_waiting` is called if that takes long. Raise SourceFailed if it is none.
    """
    with ExitStack() as opened:
        spool = None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            opened.callback(os.close, descriptor)
        else:
            spool = opened.enter_context(closing(PipeSpool(descriptor, report_waiting)))
            descriptor = spool.fileno()
            _copy_first_reading(spool)
        if (copied := _from_bundle(name, descriptor)) is not None:
            opened.callback(os.close, copied)
            yield _checked(Recording([RecordedFile(copied)]), name)
            return
        _refuse_compressed(descriptor, name, lambda command: f"… | {command}")
        yield _checked(Recording([RecordedFile(descriptor)], spool), name)


def _copy_first_reading(spool: PipeSpool) -> None:
    """Copy what comes through a pipe up to the first reading, or all of a bundle. Raise SourceFailed if that is too
    large."""
    file = RecordedFile(spool.fileno())
    while not (file.groups and _has_reading(file)) and not (file.damage or spool.is_over):
        spool.copy()
        file.refresh()
    if is_packed(spool.fileno()):
        spool.copy_all()
        if spool.cut_short:
            raise SourceFailed(
                f"a bundle from a pipe was cut short: {spool.cut_short}",
                "set TMPDIR to a folder with more room, or name the bundle",
            )


def _refuse_compressed(descriptor: int, name: str, unpacked: Callable[[str], str]) -> None:
    """Raise SourceFailed if a file is compressed, and no bundle. `unpacked` returns how to unpack it by a command."""
    if command := unpacker(descriptor):
        raise SourceFailed(
            f"{name} is no recording, nor a bundle, but compressed",
            f"if a recording is in it: {unpacked(command)} | nettop replay -",
        )


def _has_reading(file: RecordedFile) -> bool:
    return any(
        chunk.what is What.READING for number in range(len(file.groups)) for chunk in file.chunks(number)
    )


def _checked(recording: Recording, name: str) -> Recording:
    """Return a recording. Raise SourceFailed if it is none, UsageError if it has several hosts at the same time."""
    if not recording.groups:
        why = "; ".join(recording.damage) or "it has no reading"
        raise SourceFailed(f"{name} is no recording: {why}", _REMEDY)
    if hosts := recording.overlapping_hosts():
        raise UsageError(
            f"{name} has recordings of several hosts: {' and '.join(sorted(hosts))}",
            "name a file, or a folder with those of one host",
        )
    return recording


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


def _from_bundle(path: Path | str, descriptor: int) -> int | None:
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
