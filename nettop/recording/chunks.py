# SPDX-License-Identifier: Apache-2.0
"""Chunks, the units of a recording: each is appended whole, and proves by its checksum that it is what was written.

A group of chunks can be read without the ones before it: it begins with a chunk that says where it comes from, and the
readings of each lens in it, a compressed stream of their own, begin with a complete one.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from itertools import chain

import zstandard

from nettop.recording.marks import Mark
from nettop.recording.numbers import (
    Damaged,
    TooLarge,
    checked,
    checked_dict,
    checked_list,
    read_json,
    write_json,
)
from nettop.settings import MAX_INTERVAL_S
from nettop.snapshots.schema import FORMER_LENSES

FORMAT = 1
"""The version of the format. A reader refuses newer ones."""
MARKER = b"\x89nt\n"
"""Begins each chunk. It is no text, and a transfer that changes line ends breaks it."""
_HEAD = struct.Struct("<4sBBIIQI")
"""Marker, kind, number of the lens, size in the file, size of what is compressed, wall_ns, checksum."""
HEAD_BYTES = _HEAD.size
PAYLOAD_MAX = 1 << 26
"""Maximum bytes of a payload, before and after compression. A size beyond it is damage."""
GROUP_MAX = 1 << 16
"""Maximum bytes of the beginning of a group."""
LENSES_MAX = 1 << 8
"""Maximum lenses of a group: a chunk has one byte for the number of its lens."""
_WINDOW_MAX = 1 << 23
_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(6, window_log=20, hash_log=15, chain_log=15)
"""Level 9 saves 0.5 % more and level 3 takes 2 % more. The level's own tables save 1 %, but take 3 MB for each lens
instead of 0.3."""


class Incomplete(Damaged):
    """A chunk that ends early: the end of a file that is being written, or whose writer was killed."""


class What(IntEnum):
    """What a chunk has."""

    GROUP = 1
    """The beginning of a group, as JSON."""
    READING = 2
    """A snapshot of a lens."""
    EVENTS = 3
    """Rows of an append table."""


_WHATS = frozenset(what.value for what in What)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk: `payload` is compressed unless it begins a group; `size` is its size before that."""

    what: What
    lens: int
    wall_ns: int
    payload: bytes
    size: int

    @property
    def file_bytes(self) -> int:
        """Bytes of the chunk in a file."""
        return HEAD_BYTES + len(self.payload)

    def to_bytes(self) -> bytes:
        """Return the chunk as it is in a file; raise TooLarge if it is larger than a reader accepts."""
        if max(len(self.payload), self.size) > (GROUP_MAX if self.what is What.GROUP else PAYLOAD_MAX):
            raise TooLarge(f"a chunk of {self.size:,} bytes is too large for a recording")
        head = (MARKER, self.what, self.lens, len(self.payload), self.size, self.wall_ns)
        checksum = zlib.crc32(self.payload, zlib.crc32(_HEAD.pack(*head, 0)))
        return _HEAD.pack(*head, checksum) + self.payload


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """The beginning of a chunk: enough to skip it."""

    what: What
    lens: int
    payload_bytes: int
    size: int
    wall_ns: int
    checksum: int

    def complete(self, payload: bytes) -> Chunk:
        """Return the chunk; raise Damaged if its payload is not what was written."""
        if len(payload) < self.payload_bytes:
            raise Incomplete("a chunk ends early")
        head = (MARKER, self.what, self.lens, self.payload_bytes, self.size, self.wall_ns, 0)
        if zlib.crc32(payload, zlib.crc32(_HEAD.pack(*head))) != self.checksum:
            raise Damaged("a checksum is wrong")
        return Chunk(self.what, self.lens, self.wall_ns, payload, self.size)


def read_head(head: bytes) -> ChunkHead:
    """Return the beginning of a chunk; raise Damaged if these bytes are none."""
    if len(head) < HEAD_BYTES:
        raise Incomplete("a chunk ends early")
    marker, what, lens, payload_bytes, size, wall_ns, checksum = _HEAD.unpack(head[:HEAD_BYTES])
    most = GROUP_MAX if what == What.GROUP else PAYLOAD_MAX
    if marker != MARKER or what not in _WHATS or max(payload_bytes, size) > most:
        raise Damaged("there is no chunk")
    return ChunkHead(What(what), lens, payload_bytes, size, wall_ns, checksum)


# --- groups ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """The beginning of a group: where it comes from.

    `lenses` are the ids of the lenses, by their numbers; `failures` are the reasons why some have no readings. `host`
    has facts about the host. `previous` is how many bytes before this group the previous one begins in the same file;
    0 for the first. `marks` are when something was wrong since that one began, if its writer wrote this one too: if it
    `follows`. `set_back_ns` is how far the clock was set back before it, so much that its readings come an interval
    after those before; 0 if it was not.
    """

    lenses: tuple[str, ...]
    interval_s: float
    nettop: str
    host: dict[str, str] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    previous: int = 0
    marks: list[Mark] = field(default_factory=list)
    follows: bool = True
    set_back_ns: int = 0
    format: int = FORMAT

    def to_chunk(self, wall_ns: int) -> Chunk:
        """Return it as a chunk."""
        payload = write_json(asdict(self))
        return Chunk(What.GROUP, 0, wall_ns, payload, len(payload))


def group_of(chunk: Chunk) -> Group:
    """Return the beginning of a group; raise Damaged, also if a newer version wrote it."""
    read = read_json(chunk.payload)
    try:
        if checked(int, read["format"]) > FORMAT:
            raise Damaged(f"nettop {read['nettop']} wrote it in a newer format; install that version")
        group = Group(**{name: read[name] for name in Group.__slots__ if name in read})
        marks = [Mark(*checked_list(int, mark)) for mark in checked_list(list, group.marks)]
        lenses = tuple(FORMER_LENSES.get(lens, lens) for lens in checked_list(str, group.lenses))
        group = replace(group, lenses=lenses, marks=marks)
        _check(group)
        return group
    except (TypeError, KeyError) as error:
        raise Damaged("the beginning of a group lacks something") from error


def _check(group: Group) -> None:
    """Raise Damaged if something in the beginning of a group has another type than it should, or if a number is
    impossible."""
    checked(str, group.nettop)
    checked_dict(str, group.host)
    for cause in checked_dict(list, group.failures).values():
        if len(checked_list(str, cause)) != 2:
            raise Damaged("a failure is not a cause and a remedy")
    checked(bool, group.follows)
    numbers = (checked(int, group.previous), checked(int, group.set_back_ns), *chain(*group.marks))
    is_possible = min(numbers) >= 0 and 0 <= group.interval_s * 1.0 <= MAX_INTERVAL_S
    if not is_possible or len(group.lenses) > LENSES_MAX:
        raise Damaged("the beginning of a group has an impossible number")


class Compressor:
    """Compresses the payloads of one lens in a group, each with all earlier ones as context."""

    def __init__(self) -> None:
        self._stream = zstandard.ZstdCompressor(compression_params=_PARAMETERS).compressobj()

    def compress(self, content: bytes) -> bytes:
        """Return a payload that can be read as soon as it has arrived."""
        flushed: bytes = self._stream.compress(content) + self._stream.flush(
            zstandard.COMPRESSOBJ_FLUSH_BLOCK
        )
        return flushed


class Decompressor:
    """Decompresses the payloads of one lens in a group, in their order."""

    def __init__(self) -> None:
        self._payload = io.BytesIO()
        self._stream = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX).stream_reader(self._payload)

    def decompress(self, chunk: Chunk) -> bytes:
        """Return what was compressed; never more than the chunk declares. Raise Damaged."""
        self._payload.seek(0)
        self._payload.truncate()
        self._payload.write(chunk.payload)
        self._payload.seek(0)
        try:
            content: bytes = self._stream.read(chunk.size)
        except zstandard.ZstdError as error:
            raise Damaged(f"it cannot be decompressed: {error}") from error
        if len(content) != chunk.size:
            raise Damaged("a chunk is shorter than it should be")
        return content
