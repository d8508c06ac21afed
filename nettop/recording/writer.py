# SPDX-License-Identifier: Apache-2.0
"""Writing of recordings: snapshots and events, as groups of chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nettop.recording.chunks import Chunk, Compressor, Group, What
from nettop.recording.marks import Marks
from nettop.recording.readings import ReadingWriter
from nettop.snapshots.snapshot import Rows, Snapshot

READINGS_PER_GROUP = 128
"""A jump to a moment decodes at most so many readings of a lens; what does not change is stored once in so many."""
BYTES_PER_GROUP = 4 << 20


class _LensWriter:
    """The readings of one lens in a group."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._writer = ReadingWriter()
        self._compressor = Compressor()
        self.readings = 0
        self._wall_ns = 0

    def snapshot(self, snapshot: Snapshot) -> Chunk:
        self.readings += 1
        return self._chunk(What.READING, snapshot.wall_ns, self._writer.write(snapshot))

    def events(self, batch: Rows, wall_ns: int) -> Chunk:
        return self._chunk(What.EVENTS, wall_ns, self._writer.write_events(batch))

    def _chunk(self, what: What, wall_ns: int, content: bytes) -> Chunk:
        # In a group, times never decrease: events may be taken while the reading before them is still in progress.
        self._wall_ns = max(self._wall_ns, wall_ns)
        return Chunk(what, self._number, self._wall_ns, self._compressor.compress(content), len(content))


class Sink:
    """Where chunks go: `append` receives them whole. `size` is how many bytes a file has, `last_group` where its last
    group begins; None without one."""

    def __init__(self, append: Callable[[bytes], None], size: int = 0, last_group: int | None = None) -> None:
        self._append = append
        self.size = size
        self.last_group = last_group

    def put(self, chunk: Chunk) -> None:
        """Append a chunk. What `append` raises passes; it must have left nothing of the chunk."""
        content = chunk.to_bytes()
        self._append(content)
        if chunk.what is What.GROUP:
            self.last_group = self.size
        self.size += len(content)

    @property
    def group_bytes(self) -> int:
        """How many bytes the last group has; 0 without one."""
        return 0 if self.last_group is None else self.size - self.last_group


class RecordingWriter:
    """Writes snapshots and events in their order. `origin` is the beginning of every group."""

    def __init__(self, sink: Sink, origin: Group) -> None:
        self._sink = sink
        self._origin = origin
        self._lenses: dict[str, _LensWriter] = {}
        self._marks = Marks()

    def write(self, snapshot: Snapshot) -> None:
        """Write a snapshot."""
        self._put(self._lens(snapshot.lens, snapshot.wall_ns).snapshot(snapshot))
        self._marks.add(snapshot)

    def write_events(self, lens: str, batch: Rows, wall_ns: int) -> None:
        """Write rows of an append table that were taken at this time."""
        self._put(self._lens(lens, wall_ns).events(batch, wall_ns))

    def fail(self, lens: str, cause: str, remedy: str) -> None:
        """Say why a lens has no readings, or no more: in a group that begins with the next chunk."""
        self._origin = replace(self._origin, failures=self._origin.failures | {lens: [cause, remedy]})
        self._lenses = {}

    def go_on_in(self, sink: Sink) -> None:
        """Write to another file from now on."""
        self._sink = sink
        self._lenses = {}

    def _lens(self, lens: str, wall_ns: int) -> _LensWriter:
        """Return the writer of a lens; begin a new group if there is none, or if the group has become long."""
        known = self._lenses.get(lens)
        is_long = known is not None and known.readings >= READINGS_PER_GROUP
        if known is None or is_long or self._sink.group_bytes >= BYTES_PER_GROUP:
            self._begin_group(lens, wall_ns)
        return self._lenses[lens]

    def _begin_group(self, lens: str, wall_ns: int) -> None:
        if lens not in self._origin.lenses:
            self._origin = replace(self._origin, lenses=(*self._origin.lenses, lens))
        group = replace(self._origin, previous=self._sink.group_bytes, marks=self._marks.so_far())
        self._put(group.to_chunk(wall_ns))
        self._marks = Marks()
        self._lenses = {each: _LensWriter(number) for number, each in enumerate(self._origin.lenses)}

    def _put(self, chunk: Chunk) -> None:
        try:
            self._sink.put(chunk)
        except BaseException:
            self._lenses = {}  # the group lacks a chunk, so nothing can follow in it
            raise
