# SPDX-License-Identifier: Apache-2.0
"""Reading of recordings in files: an index of their groups, and the readings of each lens from any moment on."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from nettop.recording.chunks import (
    HEAD_BYTES,
    MARKER,
    Chunk,
    Decompressor,
    Group,
    Incomplete,
    What,
    group_of,
    read_head,
)
from nettop.recording.numbers import Damaged
from nettop.recording.readings import ReadingReader
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Rows, Snapshot

_GROUP_MARKER = MARKER + bytes([What.GROUP])


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """A group, where it begins in the file, and when."""

    at: int
    wall_ns: int
    group: Group
    content: int
    """Where the chunks after its first begin."""


class RecordedFile:
    """The chunks of a file that may still grow.

    `damage` says what cannot be read, and where. A last chunk that is not complete is none: it is being written, or its
    writer was killed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.groups: list[PlacedGroup] = []
        self.damage: dict[int, str] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Find the groups that were added; return whether there are some."""
        known = self.groups[-1].at if self.groups else -1
        added = list(self._groups_after(known))
        self.groups += reversed(added)
        return bool(added)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._descriptor).st_size

    def chunks(self, number: int) -> list[Chunk]:
        """Return the chunks of a group after its first, up to the first that is damaged or not complete yet."""
        return list(self._chunks(number))

    def end_of(self, number: int) -> int:
        """Return where the last complete chunk of a group ends."""
        at = self.groups[number].content
        return at + sum(HEAD_BYTES + len(chunk.payload) for chunk in self._chunks(number))

    def _chunks(self, number: int) -> Iterator[Chunk]:
        at = self.groups[number].content
        is_last = number + 1 == len(self.groups)
        content = os.pread(self._descriptor, (self.size if is_last else self.groups[number + 1].at) - at, at)
        place = 0
        while place < len(content):
            try:
                chunk = _chunk_at(content, place)
            except Incomplete:
                if not is_last:
                    self.damage[at + place] = "a chunk ends early"
                return
            except Damaged as error:
                self.damage[at + place] = str(error)
                return
            yield chunk
            place += HEAD_BYTES + len(chunk.payload)

    def _groups_after(self, known: int) -> Iterator[PlacedGroup]:
        """Yield the groups that begin after `known`, the last first: each says where the previous one begins."""
        if self.size == 0:
            return
        with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as content:
            at = content.rfind(_GROUP_MARKER)
            while at > known:
                try:
                    placed = _group_at(content, at)
                except Damaged as error:
                    self.damage[at] = str(error)
                    at = content.rfind(_GROUP_MARKER, 0, at)
                    continue
                yield placed
                previous = at - placed.group.previous
                is_there = (
                    previous < at and content[previous : previous + len(_GROUP_MARKER)] == _GROUP_MARKER
                )
                at = previous if is_there else content.rfind(_GROUP_MARKER, 0, at)


def _group_at(content: mmap.mmap, at: int) -> PlacedGroup:
    chunk = _chunk_at(content, at)
    return PlacedGroup(at, chunk.wall_ns, group_of(chunk), at + HEAD_BYTES + len(chunk.payload))


def _chunk_at(content: bytes | mmap.mmap, at: int) -> Chunk:
    """Return the chunk that begins there; raise Damaged, or Incomplete if it ends early."""
    head = read_head(content[at : at + HEAD_BYTES])
    return head.complete(content[at + HEAD_BYTES : at + HEAD_BYTES + head.payload_bytes])


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading of a lens: the snapshot and the one before, if known, and the events since the last `Readings.at`.

    `is_next` is true if it follows the last reading, so that nothing between them is missing.
    """

    now: Snapshot
    before: Snapshot | None
    events: tuple[Rows, ...]
    is_next: bool


class Groups(Protocol):
    """The groups of a recording, in the order of their time."""

    groups: list[PlacedGroup]

    def chunks(self, number: int) -> list[Chunk]:
        """Return the chunks of a group after its first, up to the first that is damaged or not complete yet."""


class Readings:
    """The readings of a lens in a recording, from any moment on."""

    def __init__(self, file: Groups, lens: Lens) -> None:
        self._file = file
        self._lens = lens
        self._group = -1
        self._waiting: deque[Chunk] = deque()
        self._now: Snapshot | None = None
        self._before: Snapshot | None = None
        self._events: list[Rows] = []
        self._begin(-1)

    def at(self, wall_ns: int) -> Reading | None:
        """Return the last reading up to a moment; None if there is none. Raise Damaged."""
        number = bisect_right(self._file.groups, wall_ns, key=lambda group: group.wall_ns) - 1
        is_next = self._now is not None and self._now.wall_ns <= wall_ns and number - self._group in (0, 1)
        if not is_next:
            self._now = self._before = None
            self._begin(max(number - 1, 0))
        while self._group < number:
            self._advance(wall_ns)
            self._begin(self._group + 1)
        self._advance(wall_ns)
        if self._now is None:
            return None
        events, self._events = tuple(self._events), []
        return Reading(self._now, self._before, events, is_next)

    def _begin(self, group: int) -> None:
        """Begin with the chunks of a group."""
        self._group = group
        self._reader, self._decompressor = ReadingReader(self._lens), Decompressor()
        self._waiting.clear()
        if 0 <= group < len(self._file.groups):
            lenses = self._file.groups[group].group.lenses
            number = lenses.index(self._lens.id) if self._lens.id in lenses else -1
            self._waiting.extend(chunk for chunk in self._file.chunks(group) if chunk.lens == number)

    def _advance(self, wall_ns: int) -> None:
        """Read what was written up to a moment."""
        while self._waiting and self._waiting[0].wall_ns <= wall_ns:
            chunk = self._waiting.popleft()
            content = self._decompressor.decompress(chunk)
            if chunk.what is What.READING:
                self._before, self._now = self._now, self._reader.read(content)
            elif (events := self._reader.read_events(content)) is not None:
                self._events.append(events)
