# SPDX-License-Identifier: Apache-2.0
"""Damaged recordings: what was whole is read, the rest is named, and nothing else happens."""

from __future__ import annotations

import gc
import gzip
import json
import os
import random
import tarfile
import tracemalloc
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from nettop.recording.bundle import recording_in
from nettop.recording.chunks import HEAD_BYTES, PAYLOAD_MAX, Chunk, Compressor, Decompressor, What, read_head
from nettop.recording.numbers import JSON_MAX, Damaged, TooLarge, write_json, write_number
from nettop.recording.reader import Readings, RecordedFile
from nettop.recording.readings import ReadingReader, ReadingWriter
from nettop.recording.tables import ROWS_MAX
from nettop.recording.writer import RecordingWriter, Sink
from nettop.snapshots import own_lenses
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import Rows
from tests.unit.recorded import GROUP, ORIGIN, assert_same, opened, random_readings, read_back, recorded

LENSES = {lens.id: lens for lens in own_lenses()}
LENS = LENSES["drops"]
TAKEN = random_readings(LENS, 1, 3 * GROUP)
CONTENT = recorded(TAKEN)
MEMORY_MAX = 256 << 20
THOROUGH = pytest.mark.thorough


def chunk_ends(content: bytes) -> list[int]:
    """Return where each chunk of an undamaged recording ends."""
    ends = [0]
    while ends[-1] < len(content):
        ends.append(ends[-1] + HEAD_BYTES + read_head(content[ends[-1] :]).payload_bytes)
    return ends[1:]


ENDS = chunk_ends(CONTENT)
WHATS = [content[4] for content in (CONTENT[end:] for end in (0, *ENDS[:-1]))]


def read_all(file: RecordedFile) -> Iterator[int]:
    """Yield the number of each reading that is read, having compared it."""
    readings = Readings(file, LENS)
    by_time = {taken.snapshot.wall_ns: number for number, taken in enumerate(TAKEN)}
    for taken in TAKEN:
        reading = readings.at(taken.snapshot.wall_ns)
        if reading is not None:
            number = by_time[reading.now.wall_ns]
            assert_same(reading.now, TAKEN[number].snapshot)
            yield number


# --- killed writers, and files that end early -----------------------------------------------------------------------


def test_truncated_at_every_byte() -> None:
    """Read the last complete reading without damage, wherever a file ends."""
    taken = random_readings(SELF, 1, GROUP + 1)
    content = recorded(taken)
    ends = chunk_ends(content)
    readings_end = [end for begin, end in pairwise((0, *ends)) if content[begin + 4] == What.READING]
    for size in range(len(content) + 1):
        whole = bisect_right(readings_end, size)
        with opened(content[:size]) as file:
            reading = Readings(file, SELF).at(taken[-1].snapshot.wall_ns)
            assert (reading is None) == (whole == 0)
            if reading is not None:
                assert_same(reading.now, taken[whole - 1].snapshot)
            assert file.damage == {}


# --- corruption -----------------------------------------------------------------------------------------------------

GROUP_BEGINS = [begin for begin, what in zip((0, *ENDS), WHATS, strict=False) if what == What.GROUP]
GROUP_ENDS = [*GROUP_BEGINS[1:], len(CONTENT)]
Corruption = Callable[[bytes, int, int, random.Random], bytes]


def flip(content: bytes, begin: int, _: int, chance: random.Random) -> bytes:
    """Flip a bit."""
    return content[:begin] + bytes([content[begin] ^ 1 << chance.randrange(8)]) + content[begin + 1 :]


def overwrite(content: bytes, begin: int, end: int, chance: random.Random) -> bytes:
    """Overwrite a range."""
    return content[:begin] + chance.randbytes(end - begin) + content[end:]


def remove(content: bytes, begin: int, end: int, _: random.Random) -> bytes:
    """Remove a range."""
    return content[:begin] + content[end:]


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=THOROUGH)])
def test_random_corruption(count: int) -> None:
    """Read undamaged groups, return only right readings of damaged ones, and name what is not read."""
    chance = random.Random(count)
    for _ in range(count):
        begin = chance.randrange(len(CONTENT))
        end = min(len(CONTENT), begin + chance.choice((1, 30, 3000)))
        corruption: Corruption = chance.choice((flip, overwrite, remove))
        end = begin + 1 if corruption is flip else end
        content = corruption(CONTENT, begin, end, chance)
        with opened(content) as file:
            read = {*read_all(file)}
            for group, (first, last) in enumerate(zip(GROUP_BEGINS, GROUP_ENDS, strict=True)):
                if end <= first or last <= begin:
                    assert read >= {*range(group * GROUP, (group + 1) * GROUP)}
            seems_unfinished = end >= ENDS[-2]  # the last chunk may now seem longer than the file
            assert file.damage or content == CONTENT or seems_unfinished
            assert all(0 <= at < len(content) for at in file.damage)


def test_damage_says_where() -> None:
    """Lose the rest of a damaged group, and no other group."""
    begin, end = ENDS[GROUP + 2], ENDS[GROUP + 3]
    with opened(flip(CONTENT, end - 1, end, random.Random(1))) as file:
        assert {*read_all(file)} == {*range(GROUP + 1), *range(2 * GROUP, 3 * GROUP)}
        assert file.damage == {begin: "a checksum is wrong"}


def test_a_longer_last_chunk() -> None:
    """Report an unfinished chunk as damage if others follow it."""
    begin = ENDS[-3]
    content = bytearray(CONTENT)
    content[begin + 8] = 1  # the payload's size is larger by 2¹⁶
    with opened(bytes(content)) as file:
        assert {*read_all(file)} == {*range(3 * GROUP - 2)}
        assert file.damage == {begin: "a chunk ends early"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", None),
        (CONTENT[:20], None),
        (b"PK\x03\x04 a file of another program, which is long enough", "there is no chunk"),
        (
            replace(ORIGIN, nettop="9.0\x1b[2J", format=2).to_chunk(1).to_bytes(),
            "nettop 9.0␛[2J wrote it in a newer format; install that version",
        ),
    ],
)
def test_no_recording(content: bytes, why: str | None) -> None:
    """Give the reason for a file without a group, unless it is being written."""
    with opened(content) as file:
        assert file.groups == []
        assert file.damage == ({} if why is None else {0: why})
        assert Readings(file, LENS).at(1) is None


# --- content that no writer wrote, under right checksums ------------------------------------------------------------


def contents() -> list[bytes]:
    """Return readings before they are compressed."""
    writer = ReadingWriter()
    return [writer.write(taken.snapshot) for taken in TAKEN[:3]]


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=THOROUGH)])
def test_changed_content(count: int) -> None:
    """Read or refuse a reading, whatever it contains."""
    chance = random.Random(count)
    given = contents()
    refused = 0
    for _ in range(count):
        reader = ReadingReader(LENS)
        changed = chance.randrange(len(given))
        try:
            for number, content in enumerate(given):
                at = chance.randrange(len(content))
                read_one(reader, flip(content, at, at + 1, chance) if number == changed else content)
        except Damaged:
            refused += 1
    assert 0 < refused < count


def read_one(reader: ReadingReader, content: bytes) -> None:
    """Read a snapshot."""
    reader.read(content)
    reader.snapshot()


def reading(head: dict[str, Any], body: bytes = b"", part: list[Any] | None = None) -> bytes:
    """Return a reading with one part."""
    whole = {"wall_ns": 1, "boot_ns": 1, "complete_since_ns": 0, "counts": {}, "lost": {}, "gaps": {}}
    whole |= {"hooks": [], "ended": {}, "parts": [part] if part else []}
    text = json.dumps(whole | head).encode()
    return write_number(len(text)) + text + body


KEY = ["id", "<u8", 0, "key", "", {}]
TEXT = next(field.name for field in LENS.main.stored if field.kind is Kind.TEXT)
MANY = write_number(2**32 - 1)


def part(*columns: list[Any], texts: dict[str, Any] | None = None) -> list[Any]:
    """Return the description of the rows of a table with these columns."""
    return ["rows", LENS.main.name, "", 1, texts or {}, list(columns)]


@contextmanager
def memory_of_at_most(most: int) -> Iterator[None]:
    """Fail if more bytes than this are allocated at once inside the `with` block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        MANY,
        write_number(10_000) + b"[" * 10_000,
        reading({"wall_ns": "now"}),
        reading({"counts": {"drops": None}}),
        *(reading({name: 10**400}) for name in ("wall_ns", "boot_ns", "complete_since_ns")),
        *(reading({name: {"x": float("inf")}}) for name in ("counts", "lost")),
        reading({"hooks": [["events", 1, [], [], "", 0]]}),
        reading({"ended": {LENS.main.name: [1, [0]]}}),
        reading({}, MANY, part(KEY)),
        reading({}, write_number(ROWS_MAX // 8) + write_number(0) + b"\0" + MANY, part(KEY)),
        reading({}, write_number(1) + write_number(0) + b"\0" + write_number(0) + b"\0\xff", part(KEY)),
        reading({}, MANY, part(KEY, ["buckets", "<u8", 2**30, "histogram", "", {}])),
        reading({}, MANY, part(["id", "O", 0, "key", "", {}])),
        reading({}, MANY, part(KEY, KEY)),
        reading(
            {},
            write_number(1) + write_number(0) + b"\0" + write_number(1) + b"\0\xff",
            part(KEY, [TEXT, "<u4", 0, "text", "", {}], texts={TEXT: [0, []]}),
        ),
    ],
)
def test_impossible_content(content: bytes) -> None:
    """Refuse at once a reading that claims more than it may, or another type."""
    with memory_of_at_most(MEMORY_MAX), pytest.raises(Damaged):
        read_one(ReadingReader(LENS), content)


def test_content_that_expands() -> None:
    """Never expand a payload beyond its declared size, nor that beyond the maximum."""
    huge = Compressor().compress(bytes(PAYLOAD_MAX))
    assert len(huge) < PAYLOAD_MAX // 1000
    with memory_of_at_most(MEMORY_MAX):
        assert len(Decompressor().decompress(Chunk(What.READING, 0, 1, huge, 100))) == 100
        with pytest.raises(Damaged, match="shorter"):
            Decompressor().decompress(Chunk(What.READING, 0, 1, huge[:100], PAYLOAD_MAX))
        content = bytearray(replace(ORIGIN, lenses=(LENS.id,)).to_chunk(1).to_bytes())
        content += Chunk(What.READING, 0, 2, huge, PAYLOAD_MAX).to_bytes()
        with opened(bytes(content)) as file, pytest.raises(Damaged):
            Readings(file, LENS).at(2)
    with pytest.raises(ValueError, match="too large for a recording"):
        Chunk(What.READING, 0, 1, huge, PAYLOAD_MAX + 1).to_bytes()


def group_with(*readings: bytes) -> bytes:
    """Return a group with readings of this content."""
    compressor = Compressor()
    chunks = [
        Chunk(What.READING, 0, 2 + number, compressor.compress(content), len(content))
        for number, content in enumerate(readings)
    ]
    return b"".join(chunk.to_bytes() for chunk in (replace(ORIGIN, lenses=(LENS.id,)).to_chunk(1), *chunks))


def reading_with(head: bytes) -> bytes:
    """Return a reading with this JSON."""
    return write_number(len(head)) + head


@pytest.mark.parametrize(
    "readings",
    [
        [reading_with(b'{"parts":[' + b"[]," * 4_000_000 + b"0]}")],
        [reading_with(b'{"counts":{' + b",".join(b'"%d":0' % n for n in range(500_000)) + b"}}")],
        [reading_with(b'{"x%d":"' % n + b"x" * 6_000_000 + b'"}') for n in range(60)],
    ],
    ids=["lists", "names", "many"],
)
def test_texts_that_take_memory(readings: list[bytes]) -> None:
    """Bound the memory for nested or many texts, even until garbage is collected."""
    content = group_with(*readings)
    assert len(content) < 2_000_000
    gc.disable()
    try:
        with memory_of_at_most(MEMORY_MAX), opened(content) as file:
            reader = Readings(file, LENS)
            for number in range(len(readings)):
                with suppress(Damaged):
                    reader.at(2 + number)
    finally:
        gc.enable()


def test_a_bundle_that_takes_memory() -> None:
    """Skip headers of a tar archive that nettop does not write, whatever size they claim."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE):
        entry = tarfile.TarInfo("nettop-bundle/recording.nettop")
        entry.type, entry.size = kind, 1 << 31
        packed = gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 26))
        with memory_of_at_most(MEMORY_MAX // 8):
            descriptor = os.memfd_create("bundle")
            os.write(descriptor, packed)
            assert recording_in(descriptor) is None
            os.close(descriptor)


def test_a_damaged_reading_ends_its_group() -> None:
    """Read the next group after a reading that cannot be decoded."""
    content = bytearray(replace(ORIGIN, lenses=(LENS.id,)).to_chunk(1).to_bytes())
    nonsense = Compressor().compress(b"nonsense")
    content += Chunk(What.READING, 0, 2, nonsense, 8).to_bytes()
    with opened(bytes(content) + CONTENT) as file:
        readings = Readings(file, LENS)
        with pytest.raises(Damaged):
            readings.at(2)
        read_back(readings, TAKEN[-1])


def test_too_many_rows() -> None:
    """Refuse to write rows and texts that a reader would refuse, and continue without them."""
    taken = TAKEN[0].snapshot
    rows = next(iter(taken.tables.values()))
    many = np.zeros(ROWS_MAX // rows.array.dtype.itemsize + 1, rows.array.dtype)
    written = bytearray()
    recording = RecordingWriter(Sink(written.extend), ORIGIN)
    with pytest.raises(TooLarge):
        write_json({"gaps": {"x": "y" * JSON_MAX}})
    with pytest.raises(ValueError, match="more than 128 MiB of rows"):
        recording.write(replace(taken, tables={rows.table.name: Rows(rows.table, many, rows.texts, 1)}))
    recording.write(taken)
    with opened(bytes(written)) as file:
        read_back(Readings(file, LENS), TAKEN[0])


@pytest.mark.parametrize(
    "given",
    [
        {"lenses": [7]},
        {"nettop": None},
        {"host": {"kernel": 6}},
        {"failures": {"cpu": "no"}},
        {"previous": "0"},
        *(
            {name: number}
            for name in ("interval_s", "previous", "set_back_ns", "format")
            for number in (10**400, -1, float("nan"))
            if (name, number) != ("format", -1)
        ),
        {"interval_s": 3601.0},
    ],
)
def test_impossible_groups(given: dict[str, Any]) -> None:
    """Refuse the beginning of a group with a value of a wrong type."""
    with opened(replace(ORIGIN, **given).to_chunk(1).to_bytes()) as file:
        assert file.groups == []
        assert list(file.damage) == [0]
