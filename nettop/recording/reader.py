# SPDX-License-Identifier: Apache-2.0
"""Reading of recordings in files: an index of their groups, and the readings of each lens from any moment on."""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from nettop.recording.chunks import (
    GROUP_MAX,
    HEAD_BYTES,
    MARKER,
    PAYLOAD_MAX,
    Chunk,
    ChunkHead,
    Decompressor,
    Group,
    Incomplete,
    What,
    group_of,
    read_head,
)
from nettop.recording.moments import time_text
from nettop.recording.numbers import Damaged
from nettop.recording.readings import ReadingReader
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Rows, Snapshot

_GROUP_MARKER = MARKER + bytes([What.GROUP])
_BLOCKS = 1 << 12, 1 << 20
"""Bytes that are searched first, and at once later on."""
_CLAIMS_MAX = 8
"""A search ends once the chunks that it found, whole or not, claim so many times the bytes of the file."""
GAP_INTERVALS = 2
"""So many intervals after the last reading before damage, or before the end of a recorder, that one is no longer what
happens."""


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """A group, where it begins in the file, and when."""

    at: int
    wall_ns: int
    group: Group
    content: int
    """Where the chunks after its first begin."""
    shift_ns: int = 0
    """What was added to its times because the clock was set back later: 0, or negative."""


class RecordedFile:
    """The chunks of a file that may still grow.

    `damage` says what cannot be read, and where: of the beginning of the file once it is opened, of a group once its
    chunks are read. An unfinished last chunk is none: it is being written, or its writer was killed. `unread` names the
    tables and columns found so far that this version does not know. `name` is that of a file among several.
    """

    def __init__(self, descriptor: int, name: str = "") -> None:
        self._descriptor = descriptor
        self.name = name
        self._searched = 0
        self._claimed = 0
        """Bytes of what a search took for chunks."""
        self._unfinished: tuple[int, int, bool] | None = None
        """Where a chunk ends early, the size of the file then, and whether no other follows."""
        self.groups: list[PlacedGroup] = []
        self.damage: dict[int, str] = {}
        self.unread: set[str] = set()
        self.refresh()

    def refresh(self) -> bool:
        """Find the groups that were added; return whether there are some."""
        size = self.size
        begin = max(self._searched - GROUP_MAX, self.groups[-1].content if self.groups else 0)
        added = list(self._groups_between(begin, size))
        self._searched = size
        self.groups += reversed(added)
        if size and (not self.groups or self.groups[0].at):
            self._say_why_none_begins()
        return bool(added)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._descriptor).st_size

    def chunks(self, number: int, after: int = 0) -> Iterator[Chunk]:
        """Yield the chunks of a group but its first, up to the first that is damaged or unfinished; those that begin
        `after` so many bytes."""
        group, is_last = self.groups[number], number in (-1, len(self.groups) - 1)
        at, end = group.content + after, self.size if is_last else self.groups[number + 1].at
        while at < end:
            try:
                chunk = self._chunk_at(at)
                if chunk.what is What.GROUP:
                    group_of(chunk)  # one that this version can read was added since
                    return
            except Damaged as error:
                if not (is_last and self._is_unfinished(at, error)):
                    self.damage[at] = str(error)
                return
            yield chunk
            at += chunk.file_bytes

    def note_damage(self, number: int, what: str) -> None:
        """Remember that a group is damaged, though its chunks are whole."""
        self.damage[self.groups[number].at] = what

    def damage_at(self, number: int, after: int) -> str:
        """Return why the chunk of a group that begins `after` so many bytes cannot be read; empty if it can."""
        return self.damage.get(self.groups[number].content + after, "")

    def end_of(self, number: int) -> int:
        """Return where the last complete chunk of a group ends."""
        return self.groups[number].content + sum(chunk.file_bytes for chunk in self.chunks(number))

    def _chunk_at(self, at: int) -> Chunk:
        """Return the chunk that begins there; raise Damaged, or Incomplete if it ends early."""
        head = self._head_at(at)
        return head.complete(os.pread(self._descriptor, head.payload_bytes, at + HEAD_BYTES))

    def _head_at(self, at: int) -> ChunkHead:
        return read_head(os.pread(self._descriptor, HEAD_BYTES, at))

    def _is_unfinished(self, at: int, error: Damaged) -> bool:
        """Return whether a chunk ends early because it is being written: no other follows."""
        if not isinstance(error, Incomplete):
            return False
        size = self.size
        if self._unfinished is None or self._unfinished[:2] != (at, size):
            following = next(self._whole_chunks(MARKER, at + 1, size), None)
            self._unfinished = at, size, following is None
        return self._unfinished[2]

    def _groups_between(self, begin: int, end: int) -> Iterator[PlacedGroup]:
        """Yield the groups in this range, the last first. Each says where the previous one begins; where that is wrong,
        it is searched for."""
        placed = self._last_group(begin, end)
        while placed is not None:
            yield placed
            previous = placed.at - placed.group.previous
            linked = self._group_at(previous) if begin <= previous < placed.at else None
            placed = linked or self._last_group(begin, placed.at)

    def _last_group(self, begin: int, end: int) -> PlacedGroup | None:
        """Return the last group in a range; the one at its beginning if a search had to end before."""
        places = chain(self._whole_chunks(_GROUP_MARKER, begin, end), (begin,) if begin < end else ())
        return next((placed for placed in map(self._group_at, places) if placed is not None), None)

    def _whole_chunks(self, wanted: bytes, begin: int, end: int) -> Iterator[int]:
        """Yield where whole chunks begin with these bytes in a range, the last place first. Each false one costs as
        many bytes as it claims: after too many, note damage, and end with one that may be false."""
        for at in self._find_last(wanted, begin, end):
            if self._claimed > _CLAIMS_MAX * self.size + PAYLOAD_MAX:
                self.damage[at] = "too many chunks begin here that are none; what is before may be missing"
                yield at
                return
            with suppress(Damaged):
                self._claimed += self._head_at(at).payload_bytes
                self._chunk_at(at)
                yield at

    def _group_at(self, at: int) -> PlacedGroup | None:
        """Return the group that begins there, if it is readable."""
        with suppress(Damaged):
            if self._head_at(at).what is What.GROUP:
                chunk = self._chunk_at(at)
                return PlacedGroup(at, chunk.wall_ns, group_of(chunk), at + chunk.file_bytes)
        return None

    def _find_last(self, wanted: bytes, begin: int, end: int) -> Iterator[int]:
        """Yield where these bytes begin in a range, the last place first."""
        block, most = _BLOCKS
        while begin < end:
            start = max(begin, end - block)
            content = os.pread(self._descriptor, end - start + len(wanted) - 1, start)
            place = content.rfind(wanted)
            while place >= 0:
                yield start + place
                place = content.rfind(wanted, 0, place + len(wanted) - 1)
            end, block = start, min(2 * block, most)

    def _say_why_none_begins(self) -> None:
        try:
            group_of(self._chunk_at(0))
        except Damaged as error:
            if not self._is_unfinished(0, error):
                self.damage[0] = str(error)


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading of a lens: the snapshot and the one before, if known, and the events since the last `Readings.at`.

    `is_next` is true if everything readable between this and the last reading was read. After a jump, the events are
    those since the beginning of the group, or of the one before.
    """

    now: Snapshot
    before: Snapshot | None
    events: tuple[Rows, ...]
    is_next: bool


class Groups(Protocol):
    """The groups of a recording, in the order of their time."""

    groups: list[PlacedGroup]
    unread: set[str]

    def note_damage(self, number: int, what: str) -> None:
        """Remember that a group is damaged, though its chunks are whole."""

    def damage_at(self, number: int, after: int) -> str:
        """Return why the chunk of a group that begins `after` so many bytes cannot be read; empty if it can."""

    def chunks(self, number: int, after: int = 0) -> Iterator[Chunk]:
        """Yield the chunks of a group but its first; those that begin `after` so many bytes."""


def moments_before(file: Groups, lens: Lens, end_ns: int) -> Iterator[int]:
    """Yield when a lens was read up to a moment, the last one first."""
    last = bisect_right(file.groups, end_ns, key=lambda group: group.wall_ns)
    for number in reversed(range(last)):
        yield from (ns for ns in reversed(moments_in(file, number, lens.id)) if ns <= end_ns)


def moments_in(file: Groups, number: int, lens: str) -> list[int]:
    """Return when a lens was read in a group."""
    lenses = file.groups[number].group.lenses
    if lens not in lenses:
        return []
    wanted = What.READING, lenses.index(lens)
    return [chunk.wall_ns for chunk in file.chunks(number) if (chunk.what, chunk.lens) == wanted]


class Readings:
    """The readings of a lens in a recording, from any moment on, also while it grows."""

    def __init__(self, file: Groups, lens: Lens) -> None:
        self._file = file
        self._lens = lens
        self._now: Snapshot | None = None
        self._before: Snapshot | None = None
        self._now_group, self._now_ns = -1, 0
        """Where the last reading is, and when it was taken, by the clock of the line of time."""
        self._events: list[Rows] = []
        self._begin(-1)

    def at(self, wall_ns: int) -> Reading | None:
        """Return the last reading up to a moment; None if there is none. Raise Damaged; the rest of the damaged group
        is skipped then."""
        number = bisect_right(self._file.groups, wall_ns, key=lambda group: group.wall_ns) - 1
        goes_on = self._reached_ns <= wall_ns
        if self._now is None and self._broken and number == self._group and goes_on:
            raise Damaged(self._broken)
        is_next = self._now is not None and goes_on and number - self._group in (0, 1)
        if not is_next:
            self._jump(number, wall_ns)
        while self._group < number:
            self._advance(wall_ns)
            self._begin(self._group + 1)
        self._advance(wall_ns)
        if self._now is None:
            return None
        events, self._events = tuple(self._events), []
        return Reading(self._now, self._before, events, is_next)

    def damage_before(self, wall_ns: int) -> str:
        """Return why nothing was read for some intervals before this moment, to which `at` has read; empty if nothing
        is damaged there."""
        if self._group < 0:
            return ""
        if wall_ns - self._reached_ns <= self._gap_ns:
            return ""
        return self._broken or self._file.damage_at(self._group, self._read)

    def pause_before(self, wall_ns: int) -> str:
        """Return since when the lens was not recorded if the last reading up to this moment, to which `at` has read, is
        some intervals old, and it had failed, or its writer has ended; empty if not. A writer that goes on may be late.

        `at` goes back by one group only, where the lens may have been left out already.
        """
        group, groups = self._group, self._file.groups
        if self._now is None:
            last_ns = next(moments_before(self._file, self._lens, wall_ns), None)
            return "" if last_ns is None else f"from {time_text(last_ns)} UTC on"
        if wall_ns - self._now_ns <= self._gap_ns:
            return ""
        if cause := groups[group].group.failures.get(self._lens.id):
            return f"from {time_text(self._now_ns)} UTC on: {cause[0]}"
        if any(not placed.group.follows for placed in groups[self._now_group + 1 : group + 1]):
            return f"from {time_text(self._now_ns)} UTC on"
        if group + 1 == len(groups) or groups[group + 1].group.follows:
            return ""
        if wall_ns - self._reached_ns <= self._gap_ns or self._next_ns:
            return ""
        if next(self._file.chunks(group, self._read), None):
            return ""
        return f"from {time_text(self._reached_ns)} to {time_text(groups[group + 1].wall_ns)} UTC"

    @property
    def _gap_ns(self) -> int:
        return GAP_INTERVALS * round(self._file.groups[self._group].group.interval_s * 1e9)

    def each(self, moments: Iterable[int]) -> Iterator[tuple[int, Reading]]:
        """Yield the readings at these moments, without those that are damaged."""
        for moment in moments:
            with suppress(Damaged):
                if (reading := self.at(moment)) is not None:
                    yield moment, reading

    def _jump(self, number: int, wall_ns: int) -> None:
        """Begin with a group, or with the one before if it has less than two readings up to this moment."""
        self._now = self._before = None
        self._events.clear()
        self._begin(number)
        readings = [chunk for chunk in self._due(wall_ns) if chunk.what is What.READING]
        self._begin(max(0, number - (len(readings) < 2)))

    def _begin(self, group: int) -> None:
        """Begin with the chunks of a group."""
        self._group, self._read = group, 0
        self._reached_ns = self._next_ns = 0
        self._broken = ""
        self._reader, self._decompressor = ReadingReader(self._lens), Decompressor()
        self._reader.unread = self._file.unread

    def _due(self, wall_ns: int) -> list[Chunk]:
        """Return the lens's next chunks in this group, up to a moment, and remember what has been read."""
        if not 0 <= self._group < len(self._file.groups) or wall_ns < self._next_ns:
            return []
        self._next_ns = 0
        lenses, due = self._file.groups[self._group].group.lenses, []
        number = lenses.index(self._lens.id) if self._lens.id in lenses else None
        for chunk in self._file.chunks(self._group, self._read):
            if chunk.wall_ns > wall_ns:
                self._next_ns = chunk.wall_ns
                break
            self._reached_ns = chunk.wall_ns
            self._read += chunk.file_bytes
            if chunk.lens == number:
                due.append(chunk)
        return due

    def _advance(self, wall_ns: int) -> None:
        """Read what was written in this group up to a moment."""
        due = self._due(wall_ns)
        left = sum(chunk.what is What.READING for chunk in due)
        try:
            for chunk in due:
                content = self._decompressor.decompress(chunk)
                if chunk.what is What.READING:
                    self._reader.read(content)
                    if left <= 2:
                        self._before, self._now = self._now, self._reader.snapshot()
                        self._now_group, self._now_ns = self._group, chunk.wall_ns
                    left -= 1
                elif (events := self._reader.read_events(content)) is not None:
                    self._events.append(events)
        except Damaged as error:
            self._read, self._broken = sys.maxsize, str(error)  # nothing can follow without this chunk
            self._file.note_damage(self._group, str(error))
            raise
