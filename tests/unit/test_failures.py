# SPDX-License-Identifier: Apache-2.0
"""Failures by reason and remote, compared with a model that counts events one by one."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.net.entered_namespaces import Namespaces
from nettop.probes.connections import failures
from nettop.probes.connections.event_records import CLOSE, EVENT, FAIL
from nettop.probes.connections.failures import Failures
from nettop.snapshots.arrays import Array
from nettop.snapshots.connections import FAILURES
from nettop.snapshots.snapshot import unknown_value
from tests.builders.arrays import unknown_rows

INBOUND, OUTBOUND, UNKNOWN = 1, 2, 0xFF
TAKEN_NS = 7
NAMESPACES = Namespaces()


class Event(NamedTuple):
    """A failure's group and time; without a start time the owner is unknown."""

    remote: int = 1
    local_port: int = 443
    remote_port: int = 50_000
    netns: int = 9
    reason: int = errno.ECONNRESET
    direction: int = OUTBOUND
    start_time: int | None = 17
    comm: bytes = b"web"
    time: int = 1
    event: int = FAIL

    @property
    def group(self) -> tuple[Any, ...]:
        """Return the failure's group as the table shows it."""
        port = self.local_port if self.direction == INBOUND else self.remote_port
        name = self.comm.decode() if self.start_time is not None and self.comm else None
        return self.remote, port, self.netns, self.reason, self.direction, name


EVENT_STRATEGY = st.builds(
    Event,
    remote=st.integers(1, 2),
    local_port=st.sampled_from([22, 443]),
    remote_port=st.sampled_from([22, 50_000]),
    netns=st.integers(8, 9),
    reason=st.sampled_from([errno.ECONNRESET, errno.ETIMEDOUT]),
    direction=st.sampled_from([INBOUND, OUTBOUND, UNKNOWN]),
    start_time=st.sampled_from([None, 17, 18]),
    comm=st.sampled_from([b"web", b"db", b""]),
    time=st.integers(1, 1000),
    event=st.sampled_from([CLOSE, FAIL]),
)
BATCHES = st.lists(st.lists(EVENT_STRATEGY, max_size=8), max_size=6)


def array_of(events: Sequence[Event]) -> Array:
    """Return the events as the ring brings them; what is not given is unknown."""
    names = ("local_port", "remote_port", "netns", "reason", "direction", "time", "comm", "event")
    return unknown_rows(
        EVENT,
        *(
            {name: getattr(event, name) for name in names}
            | {"remote_address": (0, event.remote)}
            | ({} if event.start_time is None else {"start_time": event.start_time})
            for event in events
        ),
    )


def shown(counted: Failures) -> dict[tuple[Any, ...], tuple[int, int, int]]:
    """Return the count, first and last time of each group."""
    rows = counted.rows(NAMESPACES, TAKEN_NS)
    assert (rows.table, rows.taken_ns) == (FAILURES, TAKEN_NS)
    array, names = rows.array, rows.texts["process"]
    assert array.dtype == FAILURES.dtype
    assert array["id"].tolist() == sorted(set(array["id"].tolist()))
    cells = {}
    for row in array:
        code = int(row["process"])
        name = None if code == unknown_value(array["process"].dtype) else names[code]
        columns = (int(row[column]) for column in ("port", "netns", "reason", "direction"))
        group = (int(row["remote_address"][1]), *columns, name)
        assert group not in cells
        times = (int(row[column]) for column in ("first_at", "last_at"))
        cells[group] = (int(row["failures"]), *times)
    return cells


def model(events: Sequence[Event]) -> dict[tuple[Any, ...], tuple[int, int, int]]:
    """Return what `shown` has to give."""
    by_group: dict[tuple[Any, ...], list[int]] = {}
    for event in events:
        by_group.setdefault(event.group, []).append(event.time)
    return {group: (len(times), min(times), max(times)) for group, times in by_group.items()}


@given(BATCHES)
def test_failures_are_counted_by_group(batches: list[list[Event]]) -> None:
    """With any batching, each group has its number, first and last time; rows of a snapshot do not change."""
    counted, handed_out = Failures(), []
    for batch in batches:
        rows = counted.rows(NAMESPACES, TAKEN_NS).array
        handed_out.append((rows, rows.copy()))
        counted.add(array_of(batch))
    assert all((rows == then).all() for rows, then in handed_out)
    assert shown(counted) == model([event for batch in batches for event in batch])
    assert counted.ended(NAMESPACES, TAKEN_NS).total.array["failures"].tolist() == [0]


@given(BATCHES, st.integers(1, 5))
def test_every_failure_is_in_a_group_or_has_left_with_it(batches: list[list[Event]], groups_max: int) -> None:
    """At most the limit of groups is listed, the most recent ones; all others are in the sum."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "GROUPS_MAX", groups_max)
        counted, left = Failures(), 0
        for batch in batches:
            counted.add(array_of(batch))
            left += len(counted.ended(NAMESPACES, TAKEN_NS).rows[-1])
    added = [event for batch in batches for event in batch]
    cells = shown(counted)
    assert len(cells) <= groups_max
    ended = counted.ended(NAMESPACES, TAKEN_NS)
    assert sum(count for count, _, _ in cells.values()) + int(ended.total.array["failures"][0]) == len(added)
    assert len(cells) + left >= len(model(added))


def test_the_newest_groups_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many groups come in succession, the newest stay."""
    monkeypatch.setattr(failures, "GROUPS_MAX", 16)
    counted = Failures()
    for remote in range(1, 1001):
        counted.add(array_of([Event(remote=remote, time=remote), Event(remote=1, time=remote)]))
        assert {group[0] for group in shown(counted)} >= {1, remote}
    assert 14 <= len(shown(counted)) <= 16


def test_a_reset_is_no_failed_connect() -> None:
    """Failed connects and resets of open connections are counted separately, even with one reason."""
    counted = Failures()
    counted.add(array_of([Event(event=FAIL), *[Event(event=CLOSE)] * 3]))
    counted.add(array_of([Event(event=CLOSE)]))
    (row,) = counted.rows(NAMESPACES, TAKEN_NS).array
    assert (row["failed"], row["reset"], row["failures"]) == (1, 4, 5)


def test_processes_of_one_name_are_one_group() -> None:
    """A restarted service is the same group: its name, made safe to show, counts, not its PID."""
    counted = Failures()
    counted.add(array_of([Event(start_time=time, comm=b"\x1b[31mred\n") for time in (1, 2, None, 3)]))
    assert sorted(count for count, _, _ in shown(counted).values()) == [1, 3]
    assert list(counted.rows(NAMESPACES, TAKEN_NS).texts["process"]) == ["␛[31mred␊"]
