# SPDX-License-Identifier: Apache-2.0
"""Reading a BPF ring, compared with a writer that lays records out as the kernel does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.errors import SourceFailed
from nettop.kernel.bpf.ring import committed_records

BUSY, DISCARDED = 1 << 31, 1 << 30
HEADER_BYTES = 8
RING_BYTES = 256
DTYPES = [np.dtype("u1"), np.dtype("u4"), np.dtype([("a", "u8"), ("b", "u4"), ("c", "u1")]), np.dtype("S16")]


@dataclass
class Record:
    """Space in the ring reserved by a program."""

    at: int
    data: bytes
    busy: bool = True
    discarded: bool = False


class Model:
    """A ring as kernel/bpf/ringbuf.c writes it, and the records that its reader must get.

    Positions only grow; an offset is a position modulo the size. Each byte is mapped twice, as by the kernel.
    """

    def __init__(self, dtype: np.dtype[Any], position: int = 0, size: int = RING_BYTES) -> None:
        self.dtype, self.size = dtype, size
        self.memory = np.full(2 * size, 0xA5, np.uint8)
        self.consumer = self.producer = position
        self.records: list[Record] = []

    @property
    def busy(self) -> list[Record]:
        """Return the records still being written, oldest first."""
        return [record for record in self.records if record.busy]

    def reserve(self, data: bytes) -> Record | None:
        """Reserve space for a record with this data; return None if the ring is full."""
        length = -(-(len(data) + HEADER_BYTES) // 8) * 8
        if self.producer + length - self.consumer > self.size - 1:
            return None
        record = Record(self.producer, data)
        self.records.append(record)
        self.producer += length
        self._put_header(record)
        return record

    def commit(self, record: Record, discard: bool = False) -> None:
        """End the writing of a record."""
        self._put(record.at + HEADER_BYTES, record.data)
        record.busy, record.discarded = False, discard
        self._put_header(record)

    def write(self, data: bytes) -> Record | None:
        """Reserve and commit."""
        record = self.reserve(data)
        if record is not None:
            self.commit(record)
        return record

    def read(self) -> np.ndarray[Any, Any]:
        """Read as nettop does, and advance the reader's position accordingly."""
        records, used = committed_records(
            self.memory, self.consumer % self.size, self.producer - self.consumer, self.dtype
        )
        self.consumer += used
        return records

    def expect(self) -> tuple[list[bytes], int]:
        """Return the data that the next reading has to give, and the position behind it."""
        expected, position = [], self.consumer
        while self.records and not self.records[0].busy:
            record = self.records.pop(0)
            position = record.at + -(-(len(record.data) + HEADER_BYTES) // 8) * 8
            if not record.discarded:
                expected.append(record.data)
        return expected, position

    def _put_header(self, record: Record) -> None:
        flags = (BUSY if record.busy else 0) | (DISCARDED if record.discarded else 0)
        page = record.at % self.size >> 12
        self._put(record.at, np.array([len(record.data) | flags, page], np.uint32).tobytes())

    def _put(self, position: int, data: bytes) -> None:
        at = (position + np.arange(len(data))) % self.size
        self.memory[at] = self.memory[at + self.size] = np.frombuffer(data, np.uint8)


def data_of(dtype: np.dtype[Any], number: int) -> bytes:
    """Return data of that dtype's size, which no other number makes as long as it fits."""
    return number.to_bytes(8, "little").ljust(dtype.itemsize, b"#")[: dtype.itemsize]


def raw(records: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> list[bytes]:
    """Return the records as bytes."""
    assert records.dtype == dtype
    whole = records.tobytes()
    return [whole[at : at + dtype.itemsize] for at in range(0, len(whole), dtype.itemsize)]


def check_reading(ring: Model) -> None:
    """Check that one reading returns the expected records, and moves to just behind them."""
    expected, position = ring.expect()
    assert raw(ring.read(), ring.dtype) == expected
    assert ring.consumer == position


STEPS = st.lists(
    st.tuples(st.sampled_from(["reserve", "write", "commit", "discard", "read"]), st.integers(0, 7)),
    max_size=60,
)


@given(st.sampled_from(DTYPES), st.integers(0, 3 * RING_BYTES // 8), STEPS)
def test_every_reading_gives_what_was_committed_in_front_of_what_is_busy(
    dtype: np.dtype[Any], start: int, steps: list[tuple[str, int]]
) -> None:
    """In any order of reserving, committing and discarding, each record is read once, in order."""
    ring = Model(dtype, start * 8)
    for number, (step, which) in enumerate(steps):
        if step == "read":
            check_reading(ring)
        elif step in ("commit", "discard"):
            if ring.busy:
                ring.commit(ring.busy[which % len(ring.busy)], discard=step == "discard")
        else:
            record = ring.reserve(data_of(dtype, number))
            if record is not None and step == "write":
                ring.commit(record)
    for record in ring.busy:
        ring.commit(record)
    check_reading(ring)
    assert ring.consumer == ring.producer
    assert not ring.records


@pytest.mark.parametrize(("wrong", "discard"), [(0, False), (20, True), (22, False), (29, False)])
def test_a_record_of_another_size_is_an_error(wrong: int, discard: bool) -> None:
    """A record of another size than declared is a failure of the source."""
    dtype = np.dtype("S21")
    ring = Model(dtype)
    ring.write(data_of(dtype, 1))
    record = ring.reserve(bytes(wrong))
    assert record is not None
    ring.commit(record, discard)
    ring.write(data_of(dtype, 2))
    ring.write(data_of(dtype, 3))
    with pytest.raises(SourceFailed, match="unexpected size"):
        ring.read()
    assert ring.consumer == 0


def test_a_busy_record_of_another_size_is_no_error_yet() -> None:
    """A busy record is not judged before it is committed."""
    dtype = np.dtype("S21")
    ring = Model(dtype)
    ring.write(data_of(dtype, 1))
    wrong = ring.reserve(bytes(13))
    assert wrong is not None
    ring.write(data_of(dtype, 2))
    assert raw(ring.read(), dtype) == [data_of(dtype, 1)]
    ring.commit(wrong)
    with pytest.raises(SourceFailed):
        ring.read()


@pytest.mark.parametrize(("count", "discard_first"), [(1, False), (1, True), (5, True)])
def test_records_read_are_a_copy(count: int, discard_first: bool) -> None:
    """Records are a copy, which the kernel's next writes do not change."""
    dtype = DTYPES[2]
    ring = Model(dtype)
    first = ring.reserve(data_of(dtype, 77))
    assert first is not None
    ring.commit(first, discard_first)
    for number in range(count - (not discard_first)):
        ring.write(data_of(dtype, number))
    expected, _ = ring.expect()
    records = ring.read()
    ring.memory[:] = 0xFF
    assert raw(records, dtype) == expected
    assert len(records) == count
    assert not np.shares_memory(records, ring.memory)
    records["a"] = 5  # and may be changed
    assert (ring.memory == 0xFF).all()
