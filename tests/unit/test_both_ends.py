# SPDX-License-Identifier: Apache-2.0
"""A connection seen from both ends: which ends are joined, and what the details say about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from nettop.hosts.merging import Moment, Pair, merge, merge_before
from nettop.query.both_ends import both_ends, other_key
from nettop.snapshots import lenses, several_hosts
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.services import CONNECTIONS
from nettop.snapshots.snapshot import Frame
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_frame

MS, SECOND = 1_000_000, 1_000_000_000
CLIENT, SERVER = 1, 2
"""Keys of the two sockets."""
HERE = {"local_address": "10.0.0.1", "local_port": 50_001, "remote_address": "10.0.0.2", "remote_port": 7000}
ISNS = {"local_isn": 7_000, "remote_isn": 9_001}
ORDERS: Row = {"process": "orders", "pid": 11, "netns": 1}
PAY: Row = {"process": "payapi", "pid": 22, "netns": 2}
COUNTS = ("responses", "response_ns", "queued_ns", "queued_responses")


def swapped(ends: Row) -> Row:
    """Return a connection's addresses and sequence numbers as its other end has them."""
    other = {"local": "remote", "remote": "local"}
    return {f"{other[name.partition('_')[0]]}_{name.partition('_')[2]}": ends[name] for name in ends}


SOCKET_ROWS: tuple[Row, Row] = ({"id": CLIENT, **ORDERS, **HERE}, {"id": SERVER, **PAY, **swapped(HERE)})
TURNS: tuple[Row, Row] = (
    {"id": CLIENT, "side": "used", **ORDERS, **HERE, **ISNS},
    {"id": SERVER, "side": "served", **PAY, **swapped(HERE), "local_isn": 9_001, "remote_isn": 7_001},
)
"""Of the same connection, what its client and its server show in each lens."""


def counted(client: tuple[int, int], server: tuple[int, int, int]) -> tuple[Row, Row]:
    """Return both ends in the services lens: responses and ms of responses, at the server also in its queue."""
    responses, response_ms, queued_ms = server
    at_client = dict(zip(COUNTS, (client[0], client[1] * MS), strict=False))
    at_server = dict(zip(COUNTS, (responses, response_ms * MS, queued_ms * MS, responses), strict=True))
    return TURNS[0] | at_client, TURNS[1] | at_server


def sockets(*rows: Row) -> Frame:
    """Return a frame of the connections lens."""
    return make_frame(rows or SOCKET_ROWS)


def turns(now: tuple[Row, ...], before: tuple[Row, ...] | None = None, elapsed_s: float = 2.0) -> Frame:
    """Return a frame of the services lens."""
    return make_frame(now, before, elapsed_s, table=CONNECTIONS, lens="services")


# --- times ----------------------------------------------------------------------------------------------------

FIRST = counted((100, 5_000), (100, 4_000, 1_000))


def test_the_last_interval_is_divided() -> None:
    """The path is what the client waits longer; the pause is what is left of the interval."""
    now = counted((120, 5_000 + 20 * 30), (120, 4_000 + 20 * 20, 1_000 + 20 * 8))
    for key, far in ((CLIENT, "payapi 22"), (SERVER, "orders 11")):
        assert both_ends(sockets(), turns(now, FIRST), key) == {
            "Other end": far,
            "Request": "30.0 ms, the mean of 20 responses (the last interval)",
            "Path": "10.0 ms there and back",
            "Server": "20.0 ms in payapi 22: 8.0 ms until it reads, 12.0 ms until it answers",
            "Client": "orders 11 asks again 70.0 ms after a response",
        }


@pytest.mark.parametrize(
    ("waited_before", "waited_now", "elapsed_ms", "pause"),
    [
        # Ten requests of 90 ms each follow each other at once. The first began 80 ms before the interval.
        (80, None, 820, "0 ns"),
        # The last one is still open.
        (None, 60, 960, "0 ns"),
        (80, 60, 880, "0 ns"),
        # The client pauses for 10 ms before each.
        (80, 60, 980, "10.0 ms"),
        # A single long request follows.
        (None, 2_000, 3_010, "10.0 ms"),
    ],
)
def test_requests_at_the_edges_of_an_interval(
    waited_before: int | None, waited_now: int | None, elapsed_ms: int, pause: str
) -> None:
    """A request that began before the interval, or is still open, is no pause of the client's."""
    before, now = FIRST, counted((110, 5_000 + 10 * 90), (110, 4_000 + 10 * 20, 1_000))
    before, now = (
        (client | {"waited": waited and waited * MS}, server)
        for (client, server), waited in ((before, waited_before), (now, waited_now))
    )
    facts = both_ends(sockets(), turns(now, before, elapsed_ms / 1e3), CLIENT)
    assert facts["Client"] == f"orders 11 asks again {pause} after a response"


def test_few_answers_are_counted_from_the_beginning() -> None:
    """With fewer than ten responses at one of the ends, both count since they are watched, and no pause is known."""
    now = counted((109, 5_450), (110, 4_400, 1_100))
    assert both_ends(sockets(), turns(now, FIRST), CLIENT) == {
        "Other end": "payapi 22",
        "Request": "50.0 ms, the mean of 109 responses (all since they are watched)",
        "Path": "10.0 ms there and back",
        "Server": "40.0 ms in payapi 22: 10.0 ms until it reads, 30.0 ms until it answers",
    }
    assert both_ends(sockets(), turns(now), CLIENT) == both_ends(sockets(), turns(now, FIRST), CLIENT)
    (one,) = (turns(counted((1, 30), (1, 20, 8))),)
    assert both_ends(sockets(), one, CLIENT)["Request"].startswith("30.0 ms, the mean of 1 response (")


def test_reads_that_were_not_seen() -> None:
    """The mean time in the queue is that of the requests whose read was seen; without any, it is not known."""
    (client, server), (client_before, server_before) = (
        counted((120, 600), (120, 480, 80)),
        counted((100, 500), (100, 400, 64)),
    )
    for seen_before, seen, parts in (
        (0, 0, ""),
        (90, 90, ""),
        (90, 92, ": 8.0 ms until it reads, 0 ns until it answers"),
        (90, 98, ": 2.0 ms until it reads, 2.0 ms until it answers"),
    ):
        now, before = server | {"queued_responses": seen}, server_before | {"queued_responses": seen_before}
        frame = turns((client, now), (client_before, before))
        assert both_ends(sockets(), frame, CLIENT)["Server"] == f"4.0 ms in payapi 22{parts}"
        whole = both_ends(sockets(), turns((client, now)), CLIENT)["Server"]
        assert whole.startswith("4.0 ms in payapi 22:" if seen else "4.0 ms in payapi 22")
        assert bool(seen) == ("until it reads" in whole)


def test_the_path_is_never_negative() -> None:
    """Ends that are read one after the other may count different requests."""
    now = counted((120, 5_000 + 20 * 30), (120, 4_000 + 20 * 90, 1_000))
    for frame in (turns(now, FIRST), turns(counted((1, 20), (1, 30, 0)))):
        assert both_ends(sockets(), frame, CLIENT)["Path"] == "0 ns there and back"


def test_no_answers_yet() -> None:
    """Without a response at both ends there are no times."""
    for now in (counted((0, 0), (0, 0, 0)), counted((0, 0), (1, 20, 0)), counted((1, 20), (0, 0, 0))):
        assert both_ends(sockets(), turns(now), SERVER) == {
            "Other end": "orders 11",
            "Requests": "none yet from orders 11 to payapi 22",
        }


@pytest.mark.parametrize(
    ("was_read", "end"),
    [("yes", ", which has read the request"), ("no", ", which has not read the request"), (None, "")],
)
def test_who_waits_for_whom(was_read: str | None, end: str) -> None:
    """The client waits; whether its request was read is known once it has arrived."""
    client, server = counted((0, 0), (0, 0, 0))
    rows = client | {"waited": 1_500 * MS}, server | {"was_read": was_read}
    for key in (CLIENT, SERVER):
        waits = both_ends(sockets(), turns(rows), key)["Waits"]
        assert waits == f"orders 11 has waited 1.50 s for payapi 22{end}"


def test_a_lens_that_is_not_attached() -> None:
    """The services lens is named if it has no rows at all, not if it does not know this connection."""
    far = {"Other end": "payapi 22"}
    hint = far | {
        "Requests": "unknown: the services lens (7) times them, while it is shown or was within the last minute",
    }
    assert both_ends(sockets(), None, CLIENT) == hint
    assert both_ends(sockets(), turns(()), CLIENT) == far
    assert both_ends(sockets(), turns(TURNS[:1]), CLIENT) == far
    assert both_ends(None, None, CLIENT) == {}
    assert both_ends(None, turns(TURNS), CLIENT) == {}
    assert both_ends(sockets(), None, 77) == {}


@pytest.mark.parametrize("side", ["used", "served"])
def test_two_clients(side: str) -> None:
    """Where both ends connected at once, none is the server."""
    now = tuple(row | {"side": side} for row in counted((120, 5_000), (120, 4_000, 0)))
    assert both_ends(sockets(), turns(now), CLIENT) == {"Other end": "payapi 22"}


def test_a_process_that_is_not_known() -> None:
    """An end without a process is unattributed."""
    client, server = counted((0, 0), (0, 0, 0))
    nobody: Row = {"process": None, "pid": None}
    facts = both_ends(sockets(), turns((client | {"waited": SECOND}, server | nobody)), CLIENT)
    assert facts["Waits"] == "orders 11 has waited 1.00 s for (unattributed)"
    assert facts["Requests"] == "none yet from orders 11 to (unattributed)"


# --- which ends belong together -------------------------------------------------------------------------------

LOOPBACK = {
    "local_address": "127.0.0.1",
    "local_port": 50_001,
    "remote_address": "127.0.0.1",
    "remote_port": 7000,
}
TRANSLATED = {
    "local_address": "10.0.9.9",
    "local_port": 7000,
    "remote_address": "10.0.9.1",
    "remote_port": 1025,
}


def two(ends: Row, **columns: object) -> tuple[Row, Row]:
    """Return the sockets of a connection between these ends, in one namespace."""
    return {"id": CLIENT, **ORDERS, **ends, **columns}, {"id": SERVER, **ORDERS, **swapped(ends), **columns}


def test_ends_of_one_host() -> None:
    """The end with the same addresses in the same namespace is the other one, or else the only one."""
    elsewhere = [row | {"id": 10 + row["id"], "netns": 5} for row in two(HERE)]
    assert other_key(sockets(*two(HERE)), None, CLIENT) == SERVER
    assert other_key(sockets(*two(HERE), *elsewhere), None, CLIENT) == SERVER
    assert other_key(sockets(two(HERE)[0], elsewhere[1]), None, CLIENT) == 12
    assert (
        other_key(sockets(two(HERE)[0], elsewhere[1], elsewhere[1] | {"id": 13, "netns": 6}), None, CLIENT)
        is None
    )
    assert other_key(sockets(two(HERE)[0], two(HERE, protocol="udp")[1]), None, CLIENT) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_addresses_stay_in_their_namespace(address: str) -> None:
    """A connection to a loopback address has no end in another namespace."""
    near, far = two(LOOPBACK | {"local_address": address, "remote_address": address})
    assert other_key(sockets(near, far), None, CLIENT) == SERVER
    assert other_key(sockets(near, far | {"netns": 9}), None, CLIENT) is None


def test_ends_behind_address_translation() -> None:
    """Sequence numbers join ends with different addresses; the details then name the other end."""
    behind = {**PAY, **TRANSLATED, "rtt_us": 1_500, "receive_queue": 4_100}
    rows = sockets(SOCKET_ROWS[0], {"id": SERVER, **behind})
    now = TURNS[0], TURNS[1] | TRANSLATED
    assert other_key(rows, turns(now), CLIENT) == SERVER
    assert other_key(rows, turns(now), SERVER) == CLIENT
    assert both_ends(rows, turns(now), CLIENT)["Other end"] == "payapi 22: RTT 1.5 ms, has 4.1 kB unread"
    assert other_key(rows, None, CLIENT) is None


@pytest.mark.parametrize("isns", [(None, None), (0, 0), (7_000, None)])
def test_rows_without_sequence_numbers(isns: tuple[int | None, int | None]) -> None:
    """Two connections without sequence numbers are not joined; addresses decide."""
    unknown = dict(zip(ISNS, isns, strict=True))
    now = turns((TURNS[0] | unknown, TURNS[1] | unknown))
    assert other_key(sockets(SOCKET_ROWS[0], SOCKET_ROWS[1] | TRANSLATED), now, CLIENT) is None
    assert other_key(sockets(), now, CLIENT) == SERVER


@pytest.mark.parametrize(("mine", "theirs"), [(1, 0), (2**32 - 2, 0), (2**32 - 2, 2**32 - 4), (7, 2**32 - 3)])
def test_sequence_numbers_wrap(mine: int, theirs: int) -> None:
    """The largest sequence number is next to the smallest one."""
    rows = sockets(SOCKET_ROWS[0], {"id": SERVER, **PAY, **TRANSLATED})
    isns = {"local_isn": mine, "remote_isn": (theirs + 1) % 2**32}
    at_server = {"local_isn": (theirs + 1) % 2**32, "remote_isn": (mine + 1) % 2**32}
    now = TURNS[0] | isns, TURNS[1] | TRANSLATED | at_server
    assert other_key(rows, turns(now), CLIENT) == SERVER
    assert other_key(rows, turns((now[0], now[1] | {"remote_isn": (mine + 2) % 2**32})), CLIENT) is None


def test_several_ends_with_the_same_sequence_numbers() -> None:
    """None of them is the other end."""
    several = [{"id": number, **PAY, **TRANSLATED} for number in (SERVER, SERVER + 1)]
    at_servers = [TURNS[1] | TRANSLATED | {"id": row["id"]} for row in several]
    assert other_key(sockets(SOCKET_ROWS[0], *several), turns((TURNS[0], *at_servers)), CLIENT) is None


def test_sequence_numbers_tell_ends_with_the_same_addresses_apart() -> None:
    """Addresses may occur again in other namespaces."""
    again = [SOCKET_ROWS[1] | {"id": number, "netns": number} for number in (SERVER, 30, 40)]
    now = turns((*TURNS, TURNS[1] | {"id": 30, "local_isn": 5}, TURNS[1] | {"id": 40, "remote_isn": 6}))
    assert other_key(sockets(SOCKET_ROWS[0], *again), now, CLIENT) == SERVER


# --- several hosts --------------------------------------------------------------------------------------------

BEFORE, NOW = (Moment(WALL_NS + ns, TAKEN_NS + ns, TAKEN_NS + ns) for ns in (0, 2 * SECOND))


@pytest.fixture
def with_hosts() -> Iterator[None]:
    """Have tables come from several hosts."""
    with several_hosts():
        yield


def merged(frames: Mapping[str, Frame]) -> Frame:
    """Return the frames of several hosts as one."""
    lens = next(lens for lens in lenses() if lens.id == next(iter(frames.values())).now.lens)
    pairs = {host: Pair(frame.now, frame.before) for host, frame in frames.items()}
    return Frame(merge(lens, pairs, NOW), merge_before(lens, pairs, BEFORE))


def keys(frame: Frame, table: str = SOCKETS.name) -> dict[tuple[str, int], int]:
    """Return the keys of rows by host and local port."""
    rows = frame.now.tables[table]
    hosts = [rows.texts["host"][code] for code in rows.array["host"]]
    return dict(
        zip(
            zip(hosts, rows.array["local_port"].tolist(), strict=True), rows.array["id"].tolist(), strict=True
        )
    )


@pytest.mark.usefixtures("with_hosts")
def test_ends_on_two_hosts() -> None:
    """The details name the hosts, and times are of both; numbers of namespaces mean nothing there."""
    now = counted((120, 5_000 + 20 * 30), (120, 4_000 + 20 * 20, 1_000 + 20 * 8))
    now = now[0] | {"waited": 10 * MS}, now[1] | {"was_read": "no"}
    first, second = (row | {"netns": 1, "rtt_us": 9_800, "receive_queue": 0} for row in SOCKET_ROWS)
    both = merged({"web": sockets(first), "db": sockets(second)})
    served = merged({"web": turns(now[:1], FIRST[:1]), "db": turns(now[1:], FIRST[1:])})
    at = keys(both)
    for number, end in ((at["web", 50_001], "payapi 22 on db"), (at["db", 7000], "orders 11 on web")):
        facts = both_ends(both, served, number)
        assert facts.pop("Other end") == f"{end}: RTT 9.8 ms"
        assert facts == {
            "Request": "30.0 ms, the mean of 20 responses (the last interval)",
            "Path": "10.0 ms there and back",
            "Server": "20.0 ms in payapi 22 on db: 8.0 ms until it reads, 12.0 ms until it answers",
            "Client": "orders 11 on web asks again 66.2 ms after a response",
            "Waits": "orders 11 on web has waited 10.0 ms for payapi 22 on db, which has not read the request",
        }
    assert both_ends(both, None, at["db", 7000])["Requests"].startswith("unknown: the services lens")


@pytest.mark.usefixtures("with_hosts")
@pytest.mark.parametrize("ends", [LOOPBACK, HERE], ids=["loopback", "private"])
def test_the_same_connection_on_two_hosts(ends: Row) -> None:
    """Each end is joined with that on its own host, also if namespaces have the same number."""
    both = merged({host: sockets(*two(ends)) for host in ("web", "db")})
    at = keys(both)
    for host in ("web", "db"):
        assert other_key(both, None, at[host, 50_001]) == at[host, 7000]
        assert other_key(both, None, at[host, 7000]) == at[host, 50_001]


@pytest.mark.usefixtures("with_hosts")
def test_private_addresses_in_several_namespaces_of_two_hosts() -> None:
    """The end on the same host is the other one."""
    rows = SOCKET_ROWS
    both = merged({host: sockets(*rows) for host in ("web", "db")})
    at = keys(both)
    assert other_key(both, None, at["web", 50_001]) == at["web", 7000]


@pytest.mark.usefixtures("with_hosts")
def test_loopback_addresses_stay_on_their_host() -> None:
    """A connection to a loopback address has no end on another host, though namespaces have the same number."""
    near, far = two(LOOPBACK)
    both = merged({"web": sockets(near), "db": sockets(far)})
    assert other_key(both, None, keys(both)["web", 50_001]) is None


@pytest.mark.usefixtures("with_hosts")
def test_translated_addresses_between_hosts() -> None:
    """Sequence numbers join ends on different hosts."""
    both = merged({"web": sockets(SOCKET_ROWS[0]), "db": sockets({"id": CLIENT, **PAY, **TRANSLATED})})
    at_server = TURNS[1] | TRANSLATED | {"id": CLIENT}
    served = merged({"web": turns(TURNS[:1]), "db": turns((at_server,))})
    at = keys(both)
    assert at == keys(served, CONNECTIONS.name)
    assert other_key(both, served, at["web", 50_001]) == at["db", 7000]
    assert other_key(both, served, at["db", 7000]) == at["web", 50_001]
