# SPDX-License-Identifier: Apache-2.0
"""Recordings: what was written is read, in order, after jumps, and while it is being written."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.recording.reader import Readings, RecordedFile
from nettop.recording.recording import Recording
from nettop.recording.writer import RecordingWriter, Sink
from nettop.snapshots import own_lenses
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.snapshot import Rows
from tests.unit.recorded import (
    GROUP,
    ORIGIN,
    SECOND_NS,
    Taken,
    assert_same,
    assert_same_rows,
    opened,
    random_readings,
    read_back,
    recorded,
    write,
)

LENSES = {lens.id: lens for lens in (*own_lenses(), SELF)}
BANDWIDTH, CONNECTIONS = LENSES["bandwidth"], LENSES["connections"]
READINGS = 2 * GROUP + 1
seeds = st.integers(0, 2**32)


def assert_same_batches(read: Sequence[Rows], taken: Sequence[Taken]) -> None:
    """Assert that these are the batches of some readings."""
    for batch, given_batch in zip(
        read, (batch for reading in taken for batch in reading.batches), strict=True
    ):
        assert_same_rows(batch, given_batch)


@given(name=st.sampled_from(list(LENSES)), seed=seeds)
def test_in_order(name: str, seed: int) -> None:
    """Read each reading with the one before, and each event once."""
    lens = LENSES[name]
    taken = random_readings(lens, seed, READINGS)
    with opened(recorded(taken)) as file:
        readings = Readings(file, lens)
        for number, each in enumerate(taken):
            reading = read_back(readings, each)
            assert reading.is_next == (number > 0)
            assert_same_batches(reading.events, [each])
            assert (reading.before is None) == (number == 0)
            if reading.before is not None:
                assert_same(reading.before, taken[number - 1].snapshot)
        assert len(file.groups) == READINGS // GROUP + 1
        assert (file.damage, file.unread) == ({}, set())


@given(name=st.sampled_from(list(LENSES)), seed=seeds)
def test_jumps(name: str, seed: int) -> None:
    """Return for each moment the last reading up to it, and the one before."""
    lens = LENSES[name]
    taken = random_readings(lens, seed, READINGS)
    times = [each.snapshot.wall_ns for each in taken]
    chance = random.Random(seed)
    with opened(recorded(taken)) as file:
        readings = Readings(file, lens)
        for _ in range(8):
            moment = chance.randrange(times[0] - SECOND_NS, times[-1] + SECOND_NS)
            number = bisect_right(times, moment) - 1
            reading = readings.at(moment)
            assert (reading is None) == (number < 0)
            if reading is None:
                continue
            assert_same(reading.now, taken[number].snapshot)
            if number:
                assert reading.before is not None
                assert_same(reading.before, taken[number - 1].snapshot)


def test_events_after_a_jump() -> None:
    """Return the events since the group began after a jump, then those since that reading."""
    taken = random_readings(CONNECTIONS, 3, READINGS)
    with opened(recorded(taken)) as file:
        readings = Readings(file, CONNECTIONS)
        readings.at(taken[-1].snapshot.wall_ns)
        first = readings.at(taken[GROUP + 2].snapshot.wall_ns)
        second = readings.at(taken[GROUP + 3].snapshot.wall_ns)
    assert first is not None
    assert second is not None
    assert (first.is_next, second.is_next) == (False, True)
    began_at = file.groups[1].wall_ns
    since = [reading for reading in taken[: GROUP + 3] if reading.snapshot.wall_ns > began_at]
    assert any(reading.batches for reading in since)
    assert_same_batches(first.events, since)
    assert_same_batches(second.events, [taken[GROUP + 3]])


def test_a_file_that_grows(tmp_path: Path) -> None:
    """Find new readings in the last group at once, and new groups after a refresh."""
    taken = random_readings(CONNECTIONS, 1, READINGS)
    path = tmp_path / "growing.nettop"
    with path.open("wb", buffering=0) as output, path.open("rb") as source:
        recording = RecordingWriter(Sink(output.write), ORIGIN)
        file, readings = RecordedFile(source.fileno()), None
        found = []
        for reading in taken:
            write(recording, [reading])
            found.append(file.refresh())
            readings = readings or Readings(file, CONNECTIONS)
            assert_same_batches(read_back(readings, reading).events, [reading])
        again = RecordedFile(source.fileno())
        assert [place.at for place in file.groups] == [place.at for place in again.groups]
    assert sum(found) == len(file.groups) == READINGS // GROUP + 1
    assert file.damage == {}


def test_several_lenses() -> None:
    """Share groups among lenses; a lens that begins later begins a new group for all."""
    taken = {lens.id: random_readings(lens, 5, 2 * GROUP) for lens in (BANDWIDTH, CONNECTIONS)}
    late = taken["connections"][GROUP // 2 :]
    rounds = [*([reading] for reading in taken["bandwidth"][: GROUP // 2])]
    rounds += [list(pair) for pair in zip(taken["bandwidth"][GROUP // 2 :], late, strict=True)]
    with opened(recorded([reading for round_ in rounds for reading in round_])) as file:
        first, second = (place.group.lenses for place in file.groups[:2])
        assert (first, second) == (("bandwidth",), ("bandwidth", "connections"))
        for lens, expected in ((BANDWIDTH, taken["bandwidth"]), (CONNECTIONS, late)):
            readings = Readings(file, lens)
            for datagram in expected:
                read_back(readings, datagram)


def test_a_clock_that_was_set_back() -> None:
    """Every reading has a moment of its own, in their order; those before the step have the times of the later clock,
    an interval before those after it."""
    taken = random_readings(BANDWIDTH, 2, 3 * GROUP)
    for step_s, at in product((2, 3600), (GROUP, GROUP + 1)):
        before, after = taken[:at], set_back(taken[at:], step_s)
        with opened(recorded([*before, *after])) as file:
            assert_reached(Recording([file]), before, after)


def test_a_clock_that_was_set_back_between_two_recordings() -> None:
    """Keep the order of readings when the clock was set back between two writers."""
    taken = random_readings(BANDWIDTH, 2, 3 * GROUP)
    content = bytearray(recorded(taken[:GROUP]))
    later = set_back(taken[GROUP:], 3600)
    write(RecordingWriter(Sink(content.extend, len(content), 0), ORIGIN), later)
    with opened(bytes(content)) as file:
        assert [group.group.follows for group in file.groups] == [False, False, True]
        assert_reached(Recording([file]), taken[:GROUP], later)
    with opened(recorded(taken[:GROUP])) as first, opened(recorded(later)) as second:
        assert_reached(Recording([second, first]), later, taken[:GROUP])


def set_back(taken: list[Taken], step_s: int) -> list[Taken]:
    """Return the readings as of a clock that was set back."""
    return [
        replace(
            reading, snapshot=replace(reading.snapshot, wall_ns=reading.snapshot.wall_ns - step_s * SECOND_NS)
        )
        for reading in taken
    ]


def assert_reached(recording: Recording, before: list[Taken], after: list[Taken]) -> None:
    """Assert that all readings are reached in this order."""
    moments = list(recording.moments_between(BANDWIDTH, recording.begin_ns, recording.end_ns))
    assert moments == sorted(set(moments))
    assert moments == list(reversed(list(recording.moments_before(BANDWIDTH, recording.end_ns))))
    assert moments[len(before) :] == [reading.snapshot.wall_ns for reading in after]
    assert moments[-1] == recording.end_ns
    readings = Readings(recording, BANDWIDTH)
    for (_, reading), each in zip(readings.each(moments), [*before, *after], strict=True):
        assert_same(reading.now, each.snapshot)


def test_a_failed_write_ends_the_group() -> None:
    """Read what follows a failed write without the missing reading."""
    taken = random_readings(BANDWIDTH, 4, 3)
    content = bytearray()
    is_full = False

    def append(chunk: bytes) -> None:
        if is_full:
            raise OSError("no space left")
        content.extend(chunk)

    recording = RecordingWriter(Sink(append), ORIGIN)
    write(recording, taken[:1])
    is_full = True
    with pytest.raises(OSError, match="no space"):
        write(recording, taken[1:2])
    is_full = False
    write(recording, taken[2:])
    with opened(bytes(content)) as file:
        reading = read_back(Readings(file, BANDWIDTH), taken[2])
        assert reading.before is not None
        assert_same(reading.before, taken[0].snapshot)
        assert len(file.groups) == 2


def test_another_file_begins_with_a_group() -> None:
    """Begin each file so that it can be read alone."""
    taken = random_readings(BANDWIDTH, 4, 4)
    files = bytearray(), bytearray()
    recording = RecordingWriter(Sink(files[0].extend), ORIGIN)
    write(recording, taken[:2])
    recording.go_on_in(Sink(files[1].extend))
    write(recording, taken[2:])
    for content, expected in zip(files, (taken[1], taken[3]), strict=True):
        with opened(bytes(content)) as file:
            assert file.groups[0].group.previous == 0
            read_back(Readings(file, BANDWIDTH), expected)


def test_a_group_grows_with_its_beginning() -> None:
    """Add readings to a group even if its first one is large."""
    (taken,) = random_readings(CONNECTIONS, 1, 1)
    rows = taken.snapshot.tables["sockets"]
    many = np.zeros(20_000, rows.array.dtype)
    many["id"] = np.arange(len(many))
    many["bytes_sent"] = np.random.default_rng(1).integers(0, 2**63, len(many))
    content = bytearray()
    recording = RecordingWriter(Sink(content.extend), ORIGIN)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nettop.recording.writer.BYTES_PER_GROUP", 1000)
        for number in range(40):
            many = many.copy()
            many["bytes_sent"][:300] += np.random.default_rng(number).integers(0, 2**32, 300).astype("u8")
            recording.write(
                replace(
                    taken.snapshot, wall_ns=number, tables={"sockets": replace(rows, array=many)}, ended={}
                )
            )
    with opened(bytes(content)) as file:
        assert len(file.groups) == 1
