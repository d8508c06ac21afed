# SPDX-License-Identifier: Apache-2.0
"""Writing of recordings: snapshots and events, as groups of chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from nettop.recording.chunks import Chunk, Compressor, Group, What
from nettop.recording.marks import Marks
from nettop.recording.readings import ReadingWriter
from nettop.recording.redaction.redactor import Redactor
from nettop.snapshots.snapshot import Rows, Snapshot

READINGS_PER_GROUP = 128
"""A jump to a moment decodes at most so many readings of a lens; what does not change is stored once in so many."""
BYTES_PER_GROUP = 4 << 20
"""A group ends once its changes have so many bytes, and more than the whole readings that it began with."""


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

    def __init__(
        self, append: Callable[[bytes], object], size: int = 0, last_group: int | None = None
    ) -> None:
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
    """Writes snapshots and events in their order. `origin` is the beginning of every group; `redactor` replaces
    addresses, names and texts in all that is written."""

    def __init__(self, sink: Sink, origin: Group, redactor: Redactor | None = None) -> None:
        self._sink = sink
        self._origin = origin
        self._redactor = redactor
        self._lenses: dict[str, _LensWriter] = {}
        self._whole_bytes = 0
        self._marks = Marks()
        self._follows = False
        self._last_ns: dict[str, int] = {}
        """When each lens was last read."""

    def write(self, snapshot: Snapshot) -> None:
        """Write a snapshot. Raise what `append` raises, and TooLarge if it is too large for a recording."""
        with self._whole_chunks():
            set_back_ns = max(0, self._last_ns.get(snapshot.lens, 0) - snapshot.wall_ns)
            lens = self._lens(snapshot.lens, snapshot.wall_ns, set_back_ns)
            if self._redactor is not None:
                snapshot = self._redactor.snapshot(snapshot)
            chunk = lens.snapshot(snapshot)
            self._sink.put(chunk)
            if lens.readings == 1:
                self._whole_bytes += chunk.file_bytes
        self._marks.add(snapshot)
        self._last_ns[snapshot.lens] = snapshot.wall_ns

    def write_events(self, lens: str, batch: Rows, wall_ns: int) -> None:
        """Write rows of an append table that were taken at this time. Raise as `write` does."""
        with self._whole_chunks():
            if self._redactor is not None:
                batch = self._redactor.rows(lens, batch)
            self._sink.put(self._lens(lens, wall_ns).events(batch, wall_ns))

    def fail(self, failures: dict[str, list[str]]) -> None:
        """Give cause and remedy of each lens without readings, in a group that begins with the next chunk."""
        self._origin = replace(self._origin, failures=failures)
        self._lenses = {}

    def go_on_in(self, sink: Sink) -> None:
        """Write to another file from now on."""
        self._sink = sink
        self._lenses = {}

    def _lens(self, lens: str, wall_ns: int, set_back_ns: int = 0) -> _LensWriter:
        """Return the writer of a lens; begin a new group if there is none, if the group has become long, or if the
        clock was set back since the lens was last read."""
        known = self._lenses.get(lens)
        if known is None or known.readings >= READINGS_PER_GROUP or self._is_long or set_back_ns:
            self._begin_group(lens, wall_ns, set_back_ns)
        return self._lenses[lens]

    @property
    def _is_long(self) -> bool:
        changes = self._sink.group_bytes - self._whole_bytes
        return changes > max(BYTES_PER_GROUP, self._whole_bytes)

    def _begin_group(self, lens: str, wall_ns: int, set_back_ns: int) -> None:
        if lens not in self._origin.lenses:
            self._origin = replace(self._origin, lenses=(*self._origin.lenses, lens))
        group = replace(
            self._origin,
            previous=self._sink.group_bytes,
            marks=self._marks.so_far(),
            follows=self._follows,
            set_back_ns=set_back_ns and set_back_ns + round(self._origin.interval_s * 1e9),
        )
        if set_back_ns:
            self._last_ns.clear()
        if self._redactor is not None:
            group = self._redactor.group(group)
        self._sink.put(group.to_chunk(wall_ns))
        self._marks, self._follows = Marks(self._marks.failed), True
        self._lenses = {each: _LensWriter(number) for number, each in enumerate(self._origin.lenses)}
        self._whole_bytes = 0

    @contextmanager
    def _whole_chunks(self) -> Iterator[None]:
        """Let a new group begin after a failure: the group lacks a chunk then, so nothing can follow in it."""
        try:
            yield
        except BaseException:
            self._lenses = {}
            raise
