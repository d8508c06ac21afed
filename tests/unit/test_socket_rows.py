# SPDX-License-Identifier: Apache-2.0
"""A socket's owner and direction, and its namespace's counts, derived from rows alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.host.facts import SocketCounts
from nettop.probes.connections.socket_rows import (
    NO_USERS,
    ROW,
    STATE,
    TCP,
    UDP,
    USER,
    choose_owners,
    copy_owners,
    count_hashed,
    exclude_owned,
    find_limits,
    infer_directions,
    merge,
    name_congestion_control,
)
from nettop.snapshots.arrays import Array
from nettop.snapshots.connections import CONGESTION_CONTROLS, DIRECTIONS, LIMITS
from nettop.snapshots.snapshot import known
from tests.builders.arrays import unknown_rows

Holding = tuple[int, int, int]
"""Socket id, PID, start time."""

HOLDERS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 3)), max_size=25)


rows_of = partial(unknown_rows, ROW)


def held_by(processes: list[Holding]) -> Array:
    """Return a row for each process of a socket."""
    return rows_of(*({"id": i, "pid": p, "start_time": s} for i, p, s in processes))


def owners(
    rows: Array, before: Array | None = None, users: list[tuple[int, int]] | None = None
) -> dict[int, Holding]:
    """Return the chosen process of each socket."""
    using = np.array(sorted(users or []), USER)
    chosen = rows[choose_owners(rows, rows_of() if before is None else before, using)[0]]
    assert np.all(chosen["id"][1:] > chosen["id"][:-1])
    return {
        int(i): (int(i), int(p), int(s))
        for i, p, s in zip(chosen["id"], chosen["pid"], chosen["start_time"], strict=True)
    }


@given(HOLDERS)
def test_the_process_that_started_first_owns(processes: list[Holding]) -> None:
    """Of several processes of which nothing is known the first started owns the socket, as others inherit from it; of
    several such, the lowest PID. All holders of a shared socket are kept for its details."""
    several = sorted(h for h in processes if sum(h[0] == other[0] for other in processes) > 1)
    rows = held_by(processes)
    shared = rows[choose_owners(rows, rows_of(), NO_USERS)[1]]
    assert sorted(shared[["id", "pid", "start_time"]].tolist()) == several
    best = {i: min((h for h in processes if h[0] == i), key=lambda h: (h[2], h[1])) for i, _, _ in processes}
    assert owners(held_by(processes)) == best


@given(HOLDERS, st.dictionaries(st.integers(1, 6), st.integers(1, 6)), st.sets(st.integers(0, 24)))
def test_the_user_of_a_socket_owns_it(
    processes: list[Holding], users: dict[int, int], openers: set[int]
) -> None:
    """A holder that sends or receives comes before the opener, and both before any other."""
    rows = held_by(processes)
    opened = [at in openers for at in range(len(processes))]
    rows["is_opener"] = opened
    for key, owner in owners(rows, users=list(users.items())).items():
        here = [(h, has_opened) for h, has_opened in zip(processes, opened, strict=True) if h[0] == key]
        using = {h for h, _ in here if h[1] == users.get(key)} if len(here) > 1 else set()
        opening = {h for h, has_opened in here if has_opened}
        assert owner in (using or opening or {h for h, _ in here})


def test_the_service_manager_opens_sockets_for_others() -> None:
    """A socket that systemd holds too belongs to the service that it was opened for."""
    rows = held_by([(1, 1, 1), (1, 700, 5), (2, 1, 1)])
    rows["comm"] = [b"systemd", b"web", b"systemd"]
    assert owners(rows) == {1: (1, 700, 5), 2: (2, 1, 1)}


@given(HOLDERS, HOLDERS)
def test_an_owner_stays_while_it_holds(first: list[Holding], second: list[Holding]) -> None:
    """The owner at the last refresh stays the owner, whoever else holds the socket."""
    rows = held_by(first)
    before = rows[choose_owners(rows, rows_of(), NO_USERS)[0]]
    was = owners(rows)
    now = owners(held_by(second), before)
    for key, owner in was.items():
        if owner in second:
            assert now[key] == owner


@given(st.sets(st.integers(1, 40)), st.permutations(range(1, 41)))
def test_merged_rows_are_sorted(held: set[int], order: list[int]) -> None:
    """IDs are unique and sorted, each with its own row."""
    first = rows_of(*({"id": i, "pid": 1} for i in sorted(held)))
    second = rows_of(*({"id": i, "pid": 2} for i in order if i not in held and i % 3 == 0))
    merged = merge(first, second)
    assert merged["id"].tolist() == sorted([*held, *second["id"].tolist()])
    assert [row["pid"] for row in merged] == [1 if row["id"] in held else 2 for row in merged]


def test_owners_are_given_to_the_rows_at_their_positions() -> None:
    """A row gets the owner at its position; one without a position, or at a row without an owner, keeps its own."""
    none, outside = np.iinfo(np.uint64).max, np.iinfo(np.uint32).max
    owned = rows_of(
        {"id": 1, "pid": 7, "start_time": 1, "descriptor": 3, "comm": b"web"},
        {"id": 2, "pid": outside, "start_time": none, "comm": b"none"},
        {"id": 3, "pid": outside, "start_time": 1, "descriptor": 3, "comm": b"host"},
    )
    rows = rows_of(*({"id": number, "pid": 9, "descriptor": 4, "comm": b"old"} for number in (4, 5, 6, 7)))
    copy_owners(rows, owned, np.array([0, 1, 2, -1]))
    kept = (9, 4, b"old")
    assert rows[["pid", "descriptor", "comm"]].tolist() == [(7, 3, b"web"), kept, (outside, 3, b"host"), kept]


def test_time_wait_remains_beside_the_dead_socket_of_a_descriptor() -> None:
    """A connection in TIME_WAIT keeps its row beside the dead socket of the same id; other owned ids are excluded."""
    rows = rows_of(
        *({"id": number, "state": STATE[name]} for number, name in enumerate(("TIME_WAIT", "FIN_WAIT2"), 1))
    )
    assert exclude_owned(rows, np.array([1, 2], np.uint64))["id"].tolist() == [1]
    assert exclude_owned(rows, np.array([1], np.uint64))["id"].tolist() == [1, 2]


def test_direction_follows_who_listens_in_the_same_namespace() -> None:
    """A local port that somebody listens on makes a connection inbound, but only in that namespace."""
    connection = {"protocol": TCP, "state": STATE["ESTABLISHED"], "remote_port": 9}
    rows = rows_of(
        {"protocol": TCP, "state": STATE["LISTEN"], "netns": 1, "local_port": 80},
        connection | {"netns": 1, "local_port": 80},
        connection | {"netns": 2, "local_port": 80},
        connection | {"netns": 1, "local_port": 65535},
        {"protocol": UDP, "state": STATE["ESTABLISHED"], "netns": 1, "local_port": 80, "remote_port": 9},
    )
    infer_directions(rows)
    directions = [DIRECTIONS.get(number) for number in rows["direction"].tolist()]
    assert directions == [None, "inbound?", "outbound?", "outbound?", None]


def test_only_sockets_in_hash_tables_are_counted() -> None:
    """CLOSE and unbound sockets are in no table; requests and minisockets are in one, but not counted."""
    bound = {"netns": 1, "local_port": 80}
    rows = rows_of(
        bound | {"protocol": TCP, "state": STATE["ESTABLISHED"], "send_queue": 0},
        bound | {"protocol": TCP, "state": STATE["LISTEN"], "backlog": 128, "syn_queue": 3},
        bound | {"protocol": TCP, "state": STATE["CLOSE"], "send_queue": 0},
        bound | {"protocol": TCP, "state": STATE["SYN_RECV"]},
        bound | {"protocol": TCP, "state": STATE["TIME_WAIT"]},
        bound | {"protocol": UDP, "state": STATE["UNCONN"]},
        {"protocol": UDP, "state": STATE["UNCONN"], "netns": 2},
    )
    assert count_hashed(rows) == {1: SocketCounts(tcp=2, udp=1, half_open=3), 2: SocketCounts()}


# --- what limits a connection -----------------------------------------------------------------------------------


WAITING = {"application_limited": 0, "send_buffer_full": 1, "bytes_in_flight": 0, "send_queue": 40_000}
"""Data that waits while nothing is in flight."""


@pytest.mark.parametrize(
    ("added", "flags", "limit", "share"),
    [
        ({"busy_us": 1_000_000, "receiver_limited_us": 900_000}, {}, "receiver", 0.9),
        ({"busy_us": 1_000_000, "send_buffer_limited_us": 700_000}, {}, "send buffer", 0.7),
        ({"busy_us": 800_000}, {"congestion_limited": 1}, "congestion", 0.8),
        ({"busy_us": 800_000}, {"application_limited": 0}, "congestion", 0.8),
        ({"busy_us": 800_000, "retransmits": 1}, {"congestion_limited": 1}, "path loss", 0.8),
        ({"busy_us": 800_000, "retransmits": 2, "data_packets_sent": 1999}, {}, "path loss", 0.8),
        ({"busy_us": 800_000, "retransmits": 2, "data_packets_sent": 2000}, {}, "application", 1.0),
        ({"busy_us": 800_000, "retransmits": 2, "spurious": 1}, {}, "path loss", 0.8),
        ({"busy_us": 800_000, "retransmits": 2, "spurious": 2}, {}, "application", 1.0),
        ({"busy_us": 300_000, "retransmits": 1}, {}, "application", 0.7),
        ({"busy_us": 800_000}, {"congestion_limited": 0}, "application", 1.0),
        ({"busy_us": 800_000}, {"congestion_limited": 0, "application_limited": 0}, "congestion", 0.8),
        ({"busy_us": 800_000}, {"application_limited": 1}, "application", 1.0),
        ({"busy_us": 800_000}, {"send_buffer_full": 1}, "send buffer", 0.8),
        ({"busy_us": 800_000}, {"send_buffer_full": 1, "congestion_limited": 1}, "congestion", 0.8),
        ({"busy_us": 800_000}, WAITING | {"bytes_in_flight": 40_000}, "send buffer", 0.8),
        ({"busy_us": 900_000, "data_packets_sent": 800}, WAITING, "local drop", 0.9),
        ({"busy_us": 900_000, "data_packets_sent": 800, "retransmits": 9}, WAITING, "local drop", 0.9),
        ({"busy_us": 900_000, "data_packets_sent": 800, "packets_received": 1}, WAITING, "congestion", 0.9),
        ({"busy_us": 900_000, "data_packets_sent": 800}, WAITING | {"bytes_in_flight": 1}, "congestion", 0.9),
        ({"busy_us": 900_000}, WAITING, "congestion", 0.9),
        ({"busy_us": 900_000, "receiver_limited_us": 900_000}, WAITING, "receiver", 0.9),
        ({"busy_us": 0}, {"congestion_limited": 1}, None, None),
        # Acknowledged within the tick in which it was sent.
        ({"busy_us": 0, "data_packets_sent": 50}, {"application_limited": 1}, "application", 1.0),
    ],
)
def test_limits_of_a_connection(
    added: dict[str, int], flags: dict[str, int], limit: str | None, share: float | None
) -> None:
    """The limiting cause of the last interval, with its share, is unknown if nothing was to be sent."""
    names = "busy_us receiver_limited_us send_buffer_limited_us retransmits spurious data_packets_sent packets_received"
    counters = dict.fromkeys(names.split(), 5_000_000)
    before = rows_of({"id": 7, **counters})
    grown = {name: number + added.get(name, 0) for name, number in counters.items()}
    rows = rows_of({"id": 3}, {"id": 7, **grown, **flags}, {"id": 9, **grown})
    find_limits(rows, before, 1_000_000)
    assert [known(rows[name]).tolist() for name in ("limited_by", "limited_share")] == [
        [False, limit is not None, False]
    ] * 2
    if limit is not None:
        assert LIMITS[rows["limited_by"][1]] == limit
        assert rows["limited_share"][1] == pytest.approx(share)


def test_a_moment_says_nothing_of_limits() -> None:
    """An interval of a few ticks keeps the previous limit."""
    before = rows_of({"id": 7, "busy_us": 0, "limited_by": 2, "limited_share": 0.5})
    rows = rows_of({"id": 7, "busy_us": 8000})
    find_limits(rows, before, 8000)
    assert (rows["limited_by"][0], rows["limited_share"][0]) == (2, 0.5)


def test_congestion_control_has_the_kernels_name() -> None:
    """Algorithms foreign to Linux are `other`, and unknown if no name was read."""
    rows = rows_of({"busy_us": 0, "algorithm": b"cubic"}, {"busy_us": 0, "algorithm": b"mine"}, {})
    name_congestion_control(rows)
    names = [CONGESTION_CONTROLS.get(number) for number in rows["congestion_control"].tolist()]
    assert names == ["cubic", "other", None]
