# SPDX-License-Identifier: Apache-2.0
"""Rows of the services lens from programs' counts, comparison of a service with its own past, and the declarations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettop.errors import UsageError
from nettop.formats.jsonl import JsonLines
from nettop.kernel.bpf.set_table import group_by_key
from nettop.kernel.host.facts import Host
from nettop.kernel.host.processes import Processes
from nettop.probes.services import programs
from nettop.probes.services.dns_question import question_text
from nettop.probes.services.rows import ProgramCounts, Withheld, client_rows, connection_rows, service_rows
from nettop.probes.services.udp_programs import OPEN_REQUEST
from nettop.probes.services.usual import KEPT_EVERY_S, UsualTimes
from nettop.query.units import RATIO, unit_of
from nettop.query.view import View
from nettop.snapshots import services as spec
from nettop.snapshots.arrays import Array
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.schema import Kind, Table
from nettop.snapshots.snapshot import Rows, known, known_histograms
from nettop.widgets.cells import RowFlags, RowStyle, column_cells
from nettop.widgets.columns import plan
from tests.builders.arrays import zero_rows
from tests.unit.build import Row, make_frame, make_rows, make_view

MS, SECOND = 1_000_000, 1_000_000_000
NOW, WALL = 100 * SECOND, 1_800_000_000 * SECOND
WEB, DATABASE = programs.FIRST_SLOT, programs.FIRST_SLOT + 1
NGINX: Row = {"pid": 12, "start_time": 5, "css_set": 6, "comm": b"nginx"}
POSTGRES: Row = {"pid": 34, "start_time": 7, "css_set": 8, "comm": b"postgres"}
HERE, THERE = (0, 0xFFFF_0A00_0001), (0, 0xFFFF_0A00_0002)
TEXT_OF = {HERE: "10.0.0.1", THERE: "10.0.0.2"}


def histogram(*durations: int, buckets: Buckets = spec.BUCKETS) -> Array:
    """Count these durations by bucket."""
    places = buckets.places(np.array(durations, np.float64))
    return np.bincount(places, minlength=buckets.count).astype(np.uint64)


def standing_for(duration: float, buckets: Buckets = spec.BUCKETS) -> float:
    """Return the number that stands for the bucket of a duration."""
    return float(buckets.middles[buckets.places(np.array([duration]))][0])


# --- rows -----------------------------------------------------------------------------------------------------


def words(address: tuple[int, int]) -> Array:
    """Return an address as programs write it: in network order."""
    return np.array(address, ">u8").view("u8")


def counted(
    *services: Row,
    clients: Sequence[Row] = (),
    connections: Sequence[Row] = (),
    requests: Sequence[Row] = (),
    others: Mapping[int, Row] | None = None,
) -> ProgramCounts:
    """Return a machine's program counters; each service has its columns and tallies in one dict.

    The first service has the place WEB, the second DATABASE; by default each has one response. `others` are the counts
    of the places before, by side.
    """
    answered: Row = {"began_at": 1, "response": histogram(MS)}
    places = [*((others or {}).get(side, {}) for side in spec.SIDES), *(answered | row for row in services)]
    of_services, of_tallies = (
        zero_rows(
            dtype, *({name: row[name] for name in row if name in (dtype.names or ())} for row in places)
        )
        for dtype in (programs.SERVICE, programs.TALLY)
    )
    return ProgramCounts(
        of_services,
        np.arange(len(of_services), dtype=np.uint32),
        of_tallies,
        np.zeros(0, np.uint32),
        group_by_key(zero_rows(programs.CLIENT, *clients), programs.CLIENT_KEY),
        zero_rows(programs.CONNECTION, *connections),
        zero_rows(OPEN_REQUEST, *requests),
        NOW,
        WALL,
    )


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    """Return the processes of a machine on which none of those here is running any more."""
    return Processes(Host(tmp_path))


def services_of(here: ProgramCounts, processes: Processes) -> Rows:
    """Return the rows of services at the first reading."""
    return service_rows(here, processes.begin(), UsualTimes(), Withheld())[0]


def connections_of(here: ProgramCounts, processes: Processes) -> tuple[Rows, Rows]:
    """Return the rows of connections, and those of requests without a response."""
    return connection_rows(here, services_of(here, processes), processes.begin())


def values_of(rows: Rows, name: str) -> list[Any]:
    """Return the texts or numbers of a column, None where unknown."""
    texts = rows.texts.get(name)
    return [
        None if not is_known else number if texts is None else texts[number]
        for number, is_known in zip(rows.array[name].tolist(), known(rows.array[name]).tolist(), strict=True)
    ]


def test_a_service_has_what_was_counted(processes: Processes) -> None:
    """A service's row has its place's number; its responses are its histogram's count plus overlapping ones."""
    tallies: list[Row] = [
        {name: 100 * service + at for at, name in enumerate(programs.SUMS)}
        | {
            name: np.arange(spec.BUCKETS.count) * (service + at)
            for at, name in enumerate(programs.HISTOGRAMS, 1)
        }
        for service in (1, 2)
    ]
    for tally in tallies:
        tally["overlaps"] = tally["replies"] = 1
    rows = services_of(counted(NGINX | tallies[0] | {"port": 80}, POSTGRES | tallies[1]), processes)
    assert rows.array["id"].tolist() == [WEB, DATABASE]
    for name in {*programs.SUMS, *programs.HISTOGRAMS} - {"failed_responses", "missing_names"}:
        assert rows.array[name].tolist() == [np.asarray(tally[name]).tolist() for tally in tallies]
    assert rows.array["responses"].tolist() == [tally["response"].sum() + 1 for tally in tallies]
    assert values_of(rows, "process") == ["nginx", "postgres"]
    assert values_of(rows, "pid") == [12, 34]
    assert values_of(rows, "port") == [80, 0]


SNMP_CLIENT: Row = NGINX | {"protocol": spec.UDP, "side": spec.USED, "port": 161}
DNS_CLIENT: Row = SNMP_CLIENT | {"port": 53, "failed_responses": 3, "missing_names": 4}
ONLY_TCP = ("connections", "closed", "overlaps", "pushes", "failed_connects", "transfer_ns", "pattern")


def test_each_protocol_has_its_own_columns(processes: Processes) -> None:
    """A column is known where the programs of a row's protocol count it, and those of DNS at its port."""
    rows = services_of(counted(DNS_CLIENT, SNMP_CLIENT, NGINX | {"port": 53}), processes)
    assert values_of(rows, "protocol") == [spec.UDP, spec.UDP, spec.TCP]
    assert values_of(rows, "failed_responses") == [3, None, None]
    assert values_of(rows, "missing_names") == [4, None, None]
    assert values_of(rows, "responses") == [1, 1, 1]
    for name in ONLY_TCP:
        assert values_of(rows, name) == [None, None, 0]
    assert known_histograms(rows.array["queued"]).tolist() == [False, False, True]


def test_udp_requests_wait_with_those_of_connections(processes: Processes) -> None:
    """Requests over UDP count in their service's row and have rows of their own, apart from their socket's others."""
    request: Row = {"cookie": 7, "service": WEB, "side": spec.USED, "port": 53, "address": words(THERE)}
    asked = [request | NGINX | {"number": number, "since": NOW - number * MS} for number in (2, 9)]
    here = counted(
        DNS_CLIENT | {"response": histogram()},
        NGINX,
        requests=[*asked, request | {"side": spec.SERVED, "service": DATABASE + 1, "since": NOW}],
        connections=[{"id": 5, "service": DATABASE, "open_since": NOW - MS}],
    )
    services = services_of(here, processes)
    assert values_of(services, "waiting") == [2, 1]
    assert values_of(services, "oldest") == values_of(services, "stalled") == [9 * MS, MS]
    rows = connections_of(here, processes)[1]
    assert rows.array["id"].tolist() == sorted(set(rows.array["id"].tolist()))
    rows = Rows(rows.table, np.sort(rows.array, order="waited"), rows.texts, NOW)
    assert values_of(rows, "waited") == [0, MS, 2 * MS, 9 * MS]
    assert values_of(rows, "remote_port") == [53, 0, 53, 53]
    assert values_of(rows, "process") == [None, "nginx", "nginx", "nginx"]
    assert values_of(rows, "inferred") == [0] * 4
    assert len(connections_of(here, processes)[0]) == 1


# --- UDP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (b"\3www\7example\3org\0\0\x1c\0\1", "www.example.org AAAA"),
        (b"\0\0\2\0\1", ". NS"),
        (b'\3a.b\2\\"\0\0\x01\0\1', 'a\\.b.\\\\" A'),
        (b"\4\x1b\xff \n\0\xff\xfe\0\1", "\\027\\255\\032\\010 TYPE65534"),
        (b"\3www\7exam", "www.exam…"),
        (b"\3www\7example", "www.example…"),
        (b"\3www\0\0", "www"),
        (b"\xc0\x0c\0\1\0\1", ""),
        (b"\3www\x40", ""),
        (b"", ""),
    ],
)
def test_a_question_is_text(question: bytes, text: str) -> None:
    """A question is shown as in zone files, whatever it contains; a name that does not end there is marked."""
    assert question_text(question) == text


def test_ports_are_numbers() -> None:
    """Ports are decimal numbers that exist."""
    assert spec.parse_ports(" 5060, 69,,") == [5060, 69]
    for word in ("0", "65536", "sip", "-1", "²"):
        with pytest.raises(UsageError, match="--udp-port"):
            spec.parse_ports(f"53,{word}")


# --- rows of TCP ----------------------------------------------------------------------------------------------


def test_a_service_whose_process_is_unknown(processes: Processes) -> None:
    """A service without a known process has no name, and others keep theirs."""
    rows = services_of(counted({"pid": 99, "comm": b"stale"}, POSTGRES), processes)
    for name in ("process", "cgroup", "container"):
        assert values_of(rows, name)[0] is None
    assert values_of(rows, "process")[1] == "postgres"
    assert values_of(rows, "pid") == [None, 34]


@pytest.mark.parametrize("side", spec.SIDES)
def test_services_without_a_place_of_their_own_are_one_row(processes: Processes, side: int) -> None:
    """Services without a place are one row per side, once used, without port and address, of both protocols."""
    connections = [{"service": side, "open_since": NOW - MS}]
    others = {side: {"response": histogram(MS, MS), "failed_responses": 2, "closed": 3}}
    rows = services_of(counted(NGINX, connections=connections, others=others), processes)
    assert rows.array["id"].tolist() == [side, WEB]
    assert values_of(rows, "process") == [spec.OTHERS, "nginx"]
    names = ("side", "protocol", "pid", "port", "netns", "responses", "failed_responses", "closed")
    assert [values_of(rows, name)[0] for name in names] == [side, None, None, None, None, 2, 2, 3]
    assert rows.array["connections"].tolist() == rows.array["waiting"].tolist() == [1, 0]


def test_which_services_have_a_row(processes: Processes) -> None:
    """A service has a row once it has a connection or a request, and its program has written the key; so has the row of
    all others."""
    for here in (counted(), counted({"response": histogram()})):
        services = services_of(here, processes)
        assert [len(services), len(client_rows(here, services))] == [0, 0]
        assert [len(rows) for rows in connections_of(here, processes)] == [0, 0]
    taken = counted(NGINX, {"began_at": 0, "port": 80}, POSTGRES)
    assert services_of(taken, processes).array["id"].tolist() == [WEB, WEB + 2]
    for connections, others in (
        ([{"service": spec.USED, "side": spec.USED}], {}),
        ([], {spec.USED: {"unanswered": 1}}),
    ):
        here = counted(NGINX, connections=connections, others=others)
        assert services_of(here, processes).array["id"].tolist() == [spec.USED, WEB]


@pytest.mark.parametrize(
    ("timed", "overlaps", "replies", "pattern"),
    [
        (0, 0, 0, "alternating"),
        (0, 0, 1, "pushing"),
        (19, 1, 0, "overlapping"),
        (20, 1, 0, "alternating"),
        (19, 0, 1, "pushing"),
        (20, 0, 1, "alternating"),
        (36, 2, 2, "overlapping"),
    ],
)
def test_a_service_is_marked_from_one_turn_in_twenty(
    processes: Processes, timed: int, overlaps: int, replies: int, pattern: str
) -> None:
    """A service is marked from 5 % of untimed turns on; fewer only lack response times, and overlapping
    responses count.
    """
    response = histogram(*[MS] * timed)
    here = counted(
        {"response": response, "overlaps": overlaps, "replies": replies}, connections=[{"service": WEB}]
    )
    rows = services_of(here, processes)
    assert spec.PATTERNS[int(rows.array["pattern"][0])] == pattern
    assert values_of(rows, "responses") == [timed + overlaps]
    is_marked = pattern != "alternating"
    assert known_histograms(rows.array["response"]).tolist() == [not is_marked]
    assert values_of(rows, "timed") == [None if is_marked else timed]


def test_a_request_that_is_still_being_sent_does_not_stall(processes: Processes) -> None:
    """A stream in one direction waits as long as it lasts, but is stuck only once its data stops."""
    moved = [NOW - 3 * SECOND, NOW - 5 * MS]
    here = counted(
        NGINX,
        POSTGRES,
        connections=[
            {"service": service, "open_since": NOW - 60 * SECOND, "moved_at": moved_at}
            for service, moved_at in zip((WEB, DATABASE), moved, strict=True)
        ],
    )
    rows = services_of(here, processes)
    assert values_of(rows, "oldest") == [60 * SECOND] * 2
    assert values_of(rows, "stalled") == [3 * SECOND, 5 * MS]
    assert [spec.SPEEDS[number] for number in values_of(rows, "speed")] == ["stuck", "as usual"]


def test_of_a_marked_service_nothing_is_known_to_wait(processes: Processes) -> None:
    """A marked service has no known waiting requests in any table; other services do."""
    waiting = {"open_since": NOW - 9 * SECOND}
    here = counted(
        NGINX | {"overlaps": 1},
        POSTGRES,
        clients=[client(WEB, HERE, MS), client(DATABASE, HERE, MS)],
        connections=[connection(service, HERE, id=service, **waiting) for service in (WEB, DATABASE)],
    )
    services = services_of(here, processes)
    assert values_of(services, "waiting") == [None, 1]
    assert values_of(services, "oldest") == [None, 9 * SECOND]
    assert [spec.SPEEDS[number] for number in values_of(services, "speed")] == ["as usual", "stuck"]
    clients = client_rows(here, services)
    of_service = dict(zip(values_of(clients, "service"), values_of(clients, "waiting"), strict=True))
    assert of_service == {WEB: None, DATABASE: 1}
    assert values_of(connections_of(here, processes)[1], "service") == [DATABASE]


def test_withheld_values_stay_withheld(processes: Processes) -> None:
    """Once marked, a service loses the response times of later responses."""
    withheld = Withheld()

    def reading(timed: int, overlaps: int) -> Rows:
        response = {"response": histogram(*[MS] * timed), "response_ns": timed * MS}
        here = counted(response | {"overlaps": overlaps})
        return service_rows(here, processes.begin(), UsualTimes(), withheld)[0]

    assert values_of(reading(10, 0), "timed") == [10]
    assert values_of(reading(10, 10), "timed") == [None]
    rows = reading(1000, 10)
    assert values_of(rows, "timed") == [990]
    assert values_of(rows, "response_ns") == [990 * MS]
    assert rows.array["response"].sum() == 990
    assert values_of(rows, "responses") == [1010]


# --- clients --------------------------------------------------------------------------------------------------


def client(service: int, address: tuple[int, int], *durations: int, first_seen: int = 3) -> Row:
    """Return an entry of a client that waited so long for each response."""
    return {
        "service": service,
        "address": words(address),
        "first_seen": first_seen,
        "last_seen": 9,
        "response_ns": sum(durations),
        "response": histogram(*durations, buckets=spec.CLIENT_BUCKETS),
    }


def connection(service: int, address: tuple[int, int], **more: Any) -> Row:
    """Return a connection of a client to a service."""
    return {"service": service, "remote_address": words(address), **more}


def clients_by_name(here: ProgramCounts, processes: Processes) -> dict[tuple[str | None, str], Row]:
    """Return the rows of clients by serving process and client address, each a dict with None for unknown."""
    rows = client_rows(here, services_of(here, processes))
    named = zip(values_of(rows, "process"), map(tuple, rows.array["client"].tolist()), strict=True)
    names = ("port", "responses", "response_ns", "connections", "waiting", "oldest", "service")
    columns = {name: values_of(rows, name) for name in names}
    return {
        (process, TEXT_OF[address]): {name: column[at] for name, column in columns.items()}
        for at, (process, address) in enumerate(named)
    }


def test_clients_have_their_connections(processes: Processes) -> None:
    """Clients have connections by service and address, excluding this machine's own to that address."""
    here = counted(
        NGINX | {"port": 80},
        POSTGRES | {"port": 5432},
        clients=[
            client(DATABASE, THERE, 7 * MS),
            client(WEB, HERE, MS),
            client(WEB, THERE, 2 * MS),
            client(WEB, HERE, MS),  # of another CPU
        ],
        connections=[
            connection(WEB, HERE),
            connection(WEB, HERE, open_since=NOW - 3 * MS),
            connection(DATABASE, THERE, open_since=NOW - 4 * MS),
            connection(WEB, THERE, side=spec.USED, open_since=NOW - 5 * MS),
            connection(DATABASE, HERE),
        ],
    )
    web: Row = {"port": 80, "service": WEB}
    nobody: Row = {"connections": 0, "waiting": 0, "oldest": None}
    assert clients_by_name(here, processes) == {
        ("nginx", "10.0.0.1"): web
        | {"responses": 2, "response_ns": 2 * MS, "connections": 2, "waiting": 1, "oldest": 3 * MS},
        ("nginx", "10.0.0.2"): web | nobody | {"responses": 1, "response_ns": 2 * MS},
        ("postgres", "10.0.0.2"): {"port": 5432, "service": DATABASE}
        | {"responses": 1, "response_ns": 7 * MS, "connections": 1, "waiting": 1, "oldest": 4 * MS},
    }


def ids_of(*entries: Row, processes: Processes) -> dict[tuple[int, int], int]:
    """Return the number of the row of each client, by its address; rows are sorted by it."""
    here = counted(NGINX, clients=entries)
    array = client_rows(here, services_of(here, processes)).array
    assert (array["id"][1:] > array["id"][:-1]).all()
    return dict(zip(map(tuple, array["client"].tolist()), array["id"].tolist(), strict=True))


def test_a_client_keeps_its_number(processes: Processes) -> None:
    """A client keeps its number; once evicted, it returns in another row that counts from 0."""
    first = ids_of(client(WEB, HERE, MS), processes=processes)
    many = [client(WEB, (0, number)) for number in range(20)]
    later = ids_of(*many, client(WEB, HERE, MS, MS), processes=processes)
    again = ids_of(client(WEB, HERE, first_seen=8), processes=processes)
    assert later[HERE] == first[HERE]
    assert len({*later.values(), again[HERE]}) == len(many) + 2


# --- waiting --------------------------------------------------------------------------------------------------


def test_requests_that_wait(processes: Processes) -> None:
    """Each connection has a row with its responses, and each waiting request one with its age and its arrival by wall
    clock, in order of the sockets' cookies."""
    here = counted(
        NGINX,
        connections=[
            {"id": 9, "service": WEB, "open_since": NOW - 5 * MS, "was_read": 1, "local_port": 80},
            {"id": 7, "service": WEB, "responses": 4, "response_ns": 4 * MS},
            {"id": 4, "service": WEB, "open_since": NOW - SECOND, "was_read": 0, "local_port": 80},
            {"id": 8, "service": DATABASE, "side": spec.USED, "open_since": NOW - MS, "was_read": 1},
            {"id": 6, "service": WEB, "open_since": NOW + MS, "local_port": 80},
        ],
    )
    services = services_of(here, processes)
    assert values_of(services, "connections") == [4]
    assert (values_of(services, "waiting"), values_of(services, "oldest")) == ([3], [SECOND])
    connections, rows = connections_of(here, processes)
    expected = {"id": [4, 6, 7, 8, 9], "responses": [0, 0, 4, 0, 0], "response_ns": [0, 0, 4 * MS, 0, 0]}
    assert {name: values_of(connections, name) for name in expected} == expected
    assert values_of(connections, "waited") == [SECOND, 0, None, MS, 5 * MS]
    assert values_of(rows, "id") == [4, 6, 8, 9]
    assert values_of(rows, "waited") == [SECOND, 0, MS, 5 * MS]
    assert values_of(rows, "since") == [WALL - SECOND, WALL, WALL - MS, WALL - 5 * MS]
    # Whether the peer has read it, nobody here knows.
    assert values_of(rows, "was_read") == [0, 0, None, 1]
    assert values_of(rows, "local_port") == [80, 80, 0, 80]


def test_clients_of_waiting_requests(processes: Processes) -> None:
    """A request waits for its connection's process; if unaccepted, for the server; for a used service it is unknown."""
    opened = {"open_since": NOW - MS}
    here = counted(
        NGINX,
        NGINX | {"side": spec.USED},
        connections=[
            opened | {"id": 1, "service": WEB, "has_owner": 1} | POSTGRES,
            opened | {"id": 2, "service": WEB} | POSTGRES,
            opened | {"id": 3, "service": DATABASE, "side": spec.USED} | POSTGRES,
            opened | {"id": 4, "service": DATABASE, "side": spec.USED, "has_owner": 1} | POSTGRES,
            opened | {"id": 5, "service": DATABASE + 1},
        ],
    )
    rows = connections_of(here, processes)[1]
    assert values_of(rows, "process") == ["postgres", "nginx", None, "postgres", None]
    assert values_of(rows, "pid") == [34, 12, None, 34, None]
    assert [spec.SIDES[side] for side in values_of(rows, "side")] == ["served"] * 2 + ["used"] * 2 + [
        "served"
    ]


# --- what is usual --------------------------------------------------------------------------------------------

STEADY = [10 * MS] * 50
"""The responses of a second."""


class Readings:
    """Successive readings of services, and each service's responses so far."""

    def __init__(self) -> None:
        self.usual = UsualTimes()
        self.taken_ns = NOW
        self._responses: dict[int, Array] = {}

    def read(
        self, responses: Mapping[int, Sequence[int]], stalled: int | None = None, seconds: float = 1
    ) -> dict[int, Row]:
        """Add these responses over `seconds`, and read the services that have a key, each with an open request of that
        age.

        Return each service's status, None if unknown.
        """
        self.taken_ns += round(seconds * SECOND)
        for service, durations in responses.items():
            before = self._responses.get(service, histogram())
            self._responses[service] = before + histogram(*durations)
        services: list[Row] = [
            {"id": service, "response": self._responses[service], "stalled": stalled} for service in responses
        ]
        rows = make_rows(services, spec.SERVICES, self.taken_ns)
        self.usual.set_columns(rows.array, rows.taken_ns)
        speeds = [spec.SPEEDS[speed] for speed in values_of(rows, "speed")]
        columns = (values_of(rows, "recent_p99"), values_of(rows, "usual_p99"), speeds)
        said = (
            dict(zip(("recent", "usual", "speed"), row, strict=True)) for row in zip(*columns, strict=True)
        )
        return dict(zip(values_of(rows, "id"), said, strict=True))

    def repeat(self, count: int, responses: Mapping[int, Sequence[int]]) -> dict[int, Row]:
        """Read `count` times with the same responses each second; return the last reading."""
        for _ in range(count):
            said = self.read(responses)
        return said


def test_the_last_seconds_and_the_minutes_before() -> None:
    """Slow minutes are slower until their end, but for an hour at most; values of most of the last five minutes are
    usual otherwise."""
    readings = Readings()
    fast, slow = standing_for(10 * MS), standing_for(40 * MS)
    slowly = {WEB: [40 * MS] * 50}
    assert readings.repeat(100, {WEB: STEADY})[WEB] == {"recent": fast, "usual": fast, "speed": "as usual"}
    assert readings.repeat(60, slowly)[WEB] == {"recent": slow, "usual": fast, "speed": "slower"}
    assert readings.repeat(round(spec.SPELL_S) - 60, slowly)[WEB] == {
        "recent": slow,
        "usual": fast,
        "speed": "slower",
    }
    assert readings.repeat(200, slowly)[WEB] == {"recent": slow, "usual": slow, "speed": "as usual"}
    assert readings.repeat(140, {WEB: STEADY})[WEB] == {"recent": fast, "usual": slow, "speed": "as usual"}
    assert readings.repeat(60, {WEB: STEADY})[WEB]["usual"] == fast


def test_a_service_stays_stuck() -> None:
    """While nothing is answered, the usual time is kept, however long that takes."""
    readings = Readings()
    readings.repeat(60, {WEB: STEADY})
    for age in range(1, 900):
        said = readings.read({WEB: []}, stalled=age * SECOND)[WEB]
    assert (said["usual"], said["speed"]) == (standing_for(10 * MS), "stuck")


def test_a_long_poll_keeps_no_usual_time_from_being_known() -> None:
    """A request that waits for news makes no spell while others are answered: their times become usual."""
    readings = Readings()
    for age in range(1, 60):
        said = readings.read({WEB: STEADY}, stalled=age * SECOND)[WEB]
    assert said["usual"] == standing_for(10 * MS)
    for age in range(60, 400):
        said = readings.read({WEB: [20 * MS] * 50}, stalled=age * SECOND)[WEB]
    assert said["usual"] == standing_for(20 * MS)


def test_a_slow_moment_is_soon_over() -> None:
    """Slow responses remain in the last ten seconds, but make a service slower for three only; again and again, slow
    ones make it slower all the time."""
    readings = Readings()
    readings.repeat(60, {WEB: STEADY})
    slow = readings.read({WEB: [99 * MS] * 50})
    after = [readings.read({WEB: STEADY}) for _ in range(8)]
    assert [slow[WEB]["speed"], *(said[WEB]["speed"] for said in after)] == [
        *["slower"] * 3,
        *["as usual"] * 6,
    ]
    assert {said[WEB]["recent"] for said in after} == {standing_for(99 * MS)}
    said = [readings.read({WEB: [99 * MS] if second % 3 == 0 else [10 * MS]}) for second in range(12)]
    assert {rows[WEB]["speed"] for rows in said[9:]} == {"slower"}


def test_the_slowest_of_a_hundred_answers_count() -> None:
    """Two slow responses in a hundred make a service slower, one does not."""
    readings = Readings()
    readings.repeat(30, {WEB: STEADY})
    readings.read({WEB: []}, seconds=20)
    few = readings.read({WEB: [10 * MS] * 99 + [99 * MS]}, seconds=20)
    more = readings.read({WEB: [10 * MS] * 98 + [99 * MS] * 2}, seconds=20)
    assert (few[WEB]["speed"], more[WEB]["speed"]) == ("as usual", "slower")


ABOVE, BELOW = (
    int(
        spec.BUCKETS.middles[
            spec.BUCKETS.places(np.array([spec.SLOWER_FROM * standing_for(10 * MS)])) + step
        ][0]
    )
    for step in (1, -1)
)
"""The nearest times above and below those that make a service slower."""


@pytest.mark.parametrize(
    ("usual", "recent", "speed"),
    [
        (MS, 8 * MS, "as usual"),  # a busy CPU alone makes a service as slow
        (MS, 12 * MS, "slower"),
        (10 * MS, BELOW, "as usual"),
        (10 * MS, ABOVE, "slower"),
    ],
)
def test_slower_is_three_times_the_usual_and_ten_milliseconds(usual: int, recent: int, speed: str) -> None:
    """A service is slower if it takes more than three times the usual time, and at least ten milliseconds."""
    readings = Readings()
    readings.repeat(30, {WEB: [usual] * 50})
    said = readings.repeat(10, {WEB: [recent] * 50})[WEB]
    assert said == {"recent": standing_for(recent), "usual": standing_for(usual), "speed": speed}


@pytest.mark.parametrize(
    ("usual_ns", "longest"),
    [(None, SECOND), (10 * MS, SECOND), (500 * MS, spec.STUCK_FROM * standing_for(500 * MS))],
    ids=["never answered", "fast", "slow"],
)
def test_stuck_is_a_request_that_waits(usual_ns: int | None, longest: float) -> None:
    """A request is stuck after ten times the usual wait and one second; without requests nothing is stuck."""
    readings = Readings()
    readings.repeat(30, {WEB: [usual_ns] * 50 if usual_ns else []})
    ages = [None, round(longest), round(longest) + 1, None]
    speeds = [readings.read({WEB: []}, stalled)[WEB]["speed"] for stalled in ages]
    assert speeds == ["as usual", "as usual", "stuck", "as usual"]


def test_stuck_outranks_slower() -> None:
    """A service that is both slower and stuck is stuck."""
    readings = Readings()
    readings.repeat(30, {WEB: STEADY})
    said = [readings.read({WEB: [99 * MS] * 50}, stalled)[WEB]["speed"] for stalled in (None, 2 * SECOND)]
    assert said == ["slower", "stuck"]


@pytest.mark.parametrize(
    ("earlier", "responses", "said"),
    [
        (3, 10, {"recent": standing_for(99 * MS), "usual": standing_for(10 * MS), "speed": "slower"}),
        (3, 9, {"recent": None, "usual": standing_for(10 * MS), "speed": "as usual"}),
        (2, 10, {"recent": standing_for(99 * MS), "usual": None, "speed": "as usual"}),
    ],
)
def test_few_answers_say_nothing(earlier: int, responses: int, said: Row) -> None:
    """A recent p99 needs ten responses, and the usual one three earlier recent ones."""
    readings = Readings()
    for _ in range(earlier):
        readings.read({WEB: STEADY}, seconds=spec.RECENT_S)
    # What is recent between the two is not yet usual.
    readings.read({WEB: []}, seconds=spec.RECENT_S / 2)
    assert readings.read({WEB: [99 * MS] * responses}, seconds=spec.RECENT_S / 2)[WEB] == said


def test_services_that_come_and_go() -> None:
    """A new service's counts are recent; others keep their usual values, whichever places change."""
    readings = Readings()
    assert readings.repeat(20, {}) == {}
    both = {WEB: STEADY, DATABASE: [40 * MS] * 50}
    readings.repeat(30, {DATABASE: both[DATABASE]})
    database = {"recent": standing_for(40 * MS), "usual": standing_for(40 * MS), "speed": "as usual"}
    web = {"recent": standing_for(10 * MS), "usual": None, "speed": "as usual"}
    assert readings.read(both) == {WEB: web, DATABASE: database}
    assert readings.repeat(20, both) == {WEB: web | {"usual": standing_for(10 * MS)}, DATABASE: database}
    assert readings.repeat(20, {DATABASE: both[DATABASE]}) == {DATABASE: database}
    assert readings.repeat(20, {}) == {}


def test_readings_are_kept_for_five_minutes() -> None:
    """Histograms are kept for the last seconds, and recent values every five seconds for five minutes."""
    readings = Readings()
    for _ in range(0, 900, 7):
        readings.read({WEB: []}, seconds=7)
        assert len(readings.usual._histograms) <= spec.RECENT_S / KEPT_EVERY_S + 2
        assert len(readings.usual._recent) <= spec.USUAL_S / KEPT_EVERY_S + 1


# --- what is declared -----------------------------------------------------------------------------------------

DURATIONS = {
    name: [unit * number for number in range(1, 1001)]
    for name, unit in (("response", 50_000), ("queued", 1_000), ("service_time", 7 * MS))
}
"""Response times, and so on, no two of which have the same quantiles."""
EARLIER = [3 * SECOND] * 5000
"""What each of them has counted before."""


def view_of(
    rows: Sequence[Row], before: Sequence[Row] | None = None, table: Table = spec.SERVICES, **query: Any
) -> View:
    """Return a view of these rows of a table of the lens."""
    return make_view(make_frame(rows, before, table=table, lens="services"), **query)


def all_values(view: View, name: str) -> list[Any]:
    """Return the column's values for the rows that the view shows, in its order."""
    return view.values(name, view.order)


@pytest.mark.parametrize(
    ("table", "histograms"), [(spec.SERVICES, 3), (spec.CLIENTS, 1)], ids=["services", "clients"]
)
def test_quantiles_are_of_their_histogram(table: Table, histograms: int) -> None:
    """Each quantile is of its own histogram: of the total, or of the last interval."""
    columns = [field for field in table.fields if field.kind is Kind.QUANTILE]
    assert len(columns) == 4 * histograms
    for column in columns:
        (name,) = column.parts
        buckets = table.by_name[name].buckets
        assert buckets is not None
        before: Row = {name: histogram(*EARLIER, buckets=buckets)}
        now: Row = {name: histogram(*EARLIER, *DURATIONS[name], buckets=buckets)}
        for deltas, durations in ((True, DURATIONS[name]), (False, EARLIER + DURATIONS[name])):
            exact = float(np.quantile(durations, column.quantile, method="inverted_cdf"))
            view = view_of([now], [before], table, deltas=deltas)
            assert all_values(view, column.name) == [standing_for(exact, buckets)]


MEANS: Row = {
    "response": histogram(*[12 * MS] * 4),
    "timed": 4,
    "response_ns": 50 * MS,
    "request_bytes": 6_000,
    "response_bytes": 50_000_000,
    "transfer_ns": 10_000,
    "unanswered": 0,
    "unanswered_ns": 0,
}
MEAN_COLUMNS = {
    "response_mean": ("ns", 12_500_000, "12.5 ms"),
    "request_size": ("bytes", 1_500, "1.5 kB"),
    "response_size": ("bytes", 12_500_000, "12.5 MB"),
    "transfer_mean": ("ns", 2_500, "2.5 µs"),
    "unanswered_age": ("ns", None, "–"),
}
"""Each mean of these, its unit, and what people read."""


def test_every_mean_has_the_unit_of_what_it_is_of() -> None:
    """A mean has the unit of its column; a ratio of equal units is a share."""
    means = {field.name: field for field in spec.SERVICES.fields if field.kind is Kind.RATIO}
    assert unit_of(spec.SERVICES, means.pop("failed_ratio").name) == RATIO
    assert means.keys() == MEAN_COLUMNS.keys()
    for name, field in means.items():
        assert (
            unit_of(spec.SERVICES, name)
            == spec.SERVICES.by_name[field.parts[0]].unit
            == MEAN_COLUMNS[name][0]
        )
    share = replace(
        spec.SERVICES, fields=(*spec.SERVICES.fields, replace(means["response_size"], name="share", unit=""))
    )
    assert unit_of(share, "share") == RATIO


def test_means_are_read_as_amounts() -> None:
    """Means have units on screens, and base units in JSON; without counts there is no mean."""
    view = view_of([MEANS])
    columns = tuple(MEAN_COLUMNS)
    line = json.loads(JsonLines(columns)(view))
    assert {name: line[name] for name in columns} == {
        name: value for name, (_, value, _) in MEAN_COLUMNS.items()
    }
    on_screen = [column for name in columns for column in plan(spec.SERVICES, (name,), 20, extra=False)]
    for column, (_, _, text) in zip(on_screen, MEAN_COLUMNS.values(), strict=True):
        ((cell, _),) = column_cells(view, column, view.order, [RowFlags()], RowStyle())
        assert cell.strip() == text
