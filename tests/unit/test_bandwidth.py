# SPDX-License-Identifier: Apache-2.0
"""Rates of interfaces, flows counted by several CPUs, their owners, and the services named by the user."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.errors import UsageError
from nettop.kernel.bpf.set_table import group_by_key
from nettop.kernel.net.links import Link
from nettop.probes.bandwidth import flows as flow_rows
from nettop.probes.bandwidth import interfaces
from nettop.probes.bandwidth.history import USED, ByteTotals, OwnCounters, RateHistory, UnseenPackets
from nettop.probes.bandwidth.interfaces import modes_for
from nettop.probes.bandwidth.programs import COUNTS, FLOW, KEY
from nettop.settings.shared import parse_lens_options
from nettop.snapshots import find_table
from nettop.snapshots.arrays import is_uniform
from nettop.snapshots.bandwidth import (
    FLOWS,
    GENERIC_MODE,
    NATIVE_MODE,
    PROTOCOL_NOT_IP,
    SERVICES,
    SERVICES_MAX,
    TCX_MODE,
    XDP,
    parse_services,
)
from nettop.snapshots.snapshot import TextTable
from tests.builders.arrays import zero_rows
from tests.unit.build import Row, make_rows

SECOND = 1_000_000_000
TCP, UDP, ICMP = 6, 17, 1
OWN, CONTAINER = 4_026_531_840, 4_026_532_000


# --- rates ------------------------------------------------------------------------------------------------------


Rates = tuple[tuple[float, float], tuple[float, float]]
"""The average and the peak of received and sent bytes per second."""


@pytest.mark.parametrize(
    ("readings", "since_start", "last_minute"),
    [
        ([], None, None),
        ([(1, 500, 300), (1.5, 900, 600)], None, None),
        ([(10, 1000, 0), (11, 1100, 700), (12, 1500, 700), (14, 1500, 900)], *[((125, 225), (400, 700))] * 2),
        (
            [(0, 0, 0), (1, 9000, 0), *((n, 9000, 10 * n) for n in range(2, 101))],
            ((90, 10), (9000, 20)),
            ((0, 10), (0, 10)),
        ),
        ([(0, 0, 0), (0.1, 5000, 0), (0.8, 5000, 0), (1, 5000, 0)], *[((5000, 0), (5000, 0))] * 2),
        ([(0, 0, 0), (120, 1200, 0)], ((10, 0), (10, 0)), None),
    ],
    ids=["none", "too close", "each direction", "forgets", "tenths of a second", "long interval"],
)
def test_averages_and_peaks(
    readings: list[tuple[float, int, int]], since_start: Rates | None, last_minute: Rates | None
) -> None:
    """The average covers the whole count, the peak is of the highest second; each needs two readings a second apart."""
    history = RateHistory()
    for seconds, received, sent in readings:
        history.add(ByteTotals(round(seconds * SECOND), received, sent))
    assert (history.since_start(), history.last_minute()) == (since_start, last_minute)
    assert len(history.minute) <= 61


# --- an interface's own counters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", USED)
def test_own_counters_grow_from_the_first_reading(name: str) -> None:
    """If any counter decreases, all start again: nothing is negative or jumps by a driver's reset."""
    own = OwnCounters(dict.fromkeys(USED, 1000))
    assert own.add(dict.fromkeys(USED, 2000))
    assert own.growth(USED) == 1000 * len(USED)
    assert not own.add(dict.fromkeys(USED, 2500) | {name: 3})
    assert own.growth(USED) == 0
    assert own.add(dict.fromkeys(USED, 2600) | {name: 10})
    assert own.growth((name,)) == 7


def test_unseen_packets() -> None:
    """Unseen packets are those counted by the interface for a while and not by the programs; they never decrease."""
    unseen = UnseenPackets()
    readings = (
        (0, 500, 0),
        (1, 510, 10),
        (1.1, 900, 10),
        (2, 1000, 400),
        (3, 1200, 440),
        (4, 1200, 440),
        (5, 1200, 640),
    )
    counts = []
    for seconds, received, seen in readings:
        unseen.add(round(seconds * SECOND), received, seen)
        counts.append(unseen.count)
    assert counts == [None, None, None, 0, 50, 250, 250]
    assert unseen.add(round(5.1 * SECOND), 1500, 640, is_last=True) == 100


# --- flows ------------------------------------------------------------------------------------------------------


def test_a_flow_of_several_cpus_is_one_row() -> None:
    """A flow on several CPUs is one row with summed counters, first and last times, and combined flags."""
    on_two = [
        {"remote_port": 443, "packets_sent": 2, "bytes_sent": 200, "first_seen": 7, "last_seen": 9, "tcp_flags": 2},
        {"remote_port": 443, "packets_sent": 1, "bytes_sent": 90, "first_seen": 5, "last_seen": 8, "tcp_flags": 16},
    ]  # fmt: skip
    other = {"remote_port": 53, "packets_received": 4, "first_seen": 6, "last_seen": 6}
    entries, _, starts = group_by_key(zero_rows(FLOW, on_two[0], other, on_two[1]), KEY)
    flows = flow_rows.merge_entries(entries, starts)
    (web,) = flows[flows["remote_port"] == 443]
    counted = [
        int(web[name]) for name in ("packets_sent", "bytes_sent", "first_seen", "last_seen", "tcp_flags")
    ]
    assert counted == [3, 290, 5, 9, 18]
    assert sorted(flows["remote_port"].tolist()) == [53, 443]
    entries, _, starts = group_by_key(zero_rows(FLOW), KEY)
    assert len(flow_rows.merge_entries(entries, starts)) == 0


@pytest.mark.parametrize(
    "other",
    [
        {"remote_port": 80},
        {"local_port": 80},
        {"protocol": UDP},
        {"interface": 256},
        {"local_address": 1},
        {"remote_address": 1},
        {"first_seen": 7},
    ],
    ids=lambda other: next(iter(other)),
)
def test_keys_that_split_flows(other: dict[str, int]) -> None:
    """Any part of the key, or a new beginning, makes another flow; counts do not."""
    flow = {"protocol": TCP, "remote_port": 443, "local_port": 40_000}
    ids = flow_rows.ids_of(zero_rows(FLOW, flow, flow | other, flow | {"bytes_sent": 9, "last_seen": 5}))
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize(
    ("protocol", "ethertype", "name"),
    [
        (TCP, 0, "tcp"),
        (58, 0, "icmpv6"),
        (200, 0, "200"),
        (PROTOCOL_NOT_IP, 0x0806, "arp"),
        (PROTOCOL_NOT_IP, 0x88B5, "0x88b5"),
        (PROTOCOL_NOT_IP, 0, "?"),
    ],
)
def test_names_of_protocols(protocol: int, ethertype: int, name: str) -> None:
    """IP protocols are named by number, others by ethertype; an unnamed one keeps its number."""
    assert flow_rows.protocol_name(protocol, ethertype) == name


def test_protocols_with_ports() -> None:
    """Only protocols whose ports the programs read have ports, in flows whose first fragment they saw."""
    protocols = (TCP, UDP, 132, ICMP, 47, PROTOCOL_NOT_IP)
    flows = zero_rows(FLOW, *({"protocol": protocol} for protocol in protocols))
    assert flow_rows.has_ports(flows).tolist() == [True, True, True, False, False, False]
    assert flow_rows.has_ports(zero_rows(FLOW, {"protocol": UDP, "has_unknown_ports": 1})).tolist() == [False]


@pytest.mark.parametrize(("flags", "text"), [(0, ""), (0x12, "SA"), (0x11, "FA"), (0xFF, "FSRPAUEC")])
def test_letters_of_flags(flags: int, text: str) -> None:
    """Flags are listed from the lowest bit."""
    assert flow_rows.flags_text(flags) == text


# --- owners -----------------------------------------------------------------------------------------------------


def ends(local: str, local_port: int | None, remote: str, remote_port: int | None) -> Row:
    """Return the columns of a pair of endpoints."""
    names = ("local_address", "local_port", "remote_address", "remote_port")
    return dict(zip(names, (local, local_port, remote, remote_port), strict=True))


WEB: Row = {"id": 1} | ends("10.0.0.1", 443, "10.0.0.9", 5000)
WEB_6 = WEB | {"id": 2, "local_address": "2001:db8::1", "remote_address": "2001:db8::9"}
NOT_CONNECTED: Row = {"protocol": "udp", "remote_port": None, "local_port": 53}
DNS = NOT_CONNECTED | {"id": 3, "local_address": "10.0.0.1", "remote_address": "0.0.0.0"}
ANY = NOT_CONNECTED | {"id": 4, "local_address": "0.0.0.0", "local_port": 123, "remote_address": "0.0.0.0"}
ANY_6 = NOT_CONNECTED | {"id": 5, "local_address": "::", "local_port": 51820, "remote_address": "::"}
LISTENER = WEB | {"id": 6, "local_port": 80, "remote_address": "0.0.0.0", "remote_port": None}
IN_CONTAINER = {"id": 7, "netns": CONTAINER} | ends("172.17.0.2", 443, "172.17.0.1", 5000)
SOCKETS = (WEB, WEB_6, DNS, ANY, ANY_6, LISTENER, IN_CONTAINER)


@pytest.mark.parametrize(
    ("protocol", "local", "remote", "owner"),
    [
        (TCP, ("10.0.0.1", 443), ("10.0.0.9", 5000), WEB),
        (TCP, ("2001:db8::1", 443), ("2001:db8::9", 5000), WEB_6),
        (UDP, ("10.0.0.1", 443), ("10.0.0.9", 5000), None),
        (TCP, ("10.0.0.1", 443), ("10.0.0.9", 5001), None),
        (TCP, ("10.0.0.9", 5000), ("10.0.0.1", 443), None),
        (UDP, ("10.0.0.1", 53), ("10.0.0.9", 5000), DNS),
        (UDP, ("10.0.0.2", 53), ("10.0.0.9", 5000), None),
        (UDP, ("10.0.0.1", 123), ("10.0.0.9", 5000), ANY),
        (UDP, ("10.0.0.1", 51820), ("10.0.0.9", 5000), ANY_6),
        (UDP, ("2001:db8::1", 51820), ("2001:db8::9", 5000), ANY_6),
        (TCP, ("10.0.0.1", 80), ("10.0.0.9", 5000), None),
        (TCP, ("172.17.0.1", 5000), ("172.17.0.2", 443), IN_CONTAINER),
        (TCP, ("172.17.0.2", 443), ("172.17.0.1", 5000), None),
        (ICMP, ("10.0.0.1", None), ("10.0.0.9", None), None),
    ],
    ids=[
        "IPv4", "IPv6", "another protocol", "another port", "the other end", "UDP without a peer",
        "another address", "any address", "any address of IPv6", "IPv6 to any", "a listener owns no flow",
        "a container's end", "not a container's other end", "no ports",
    ],
)  # fmt: skip
def test_owner_of_a_flow(
    protocol: int, local: tuple[str, int | None], remote: tuple[str, int | None], owner: Row | None
) -> None:
    """A flow belongs to the socket with its ends, reversed for a container; without a peer, by its port."""
    flows = make_rows([{"id": 1} | ends(*local, *remote)], FLOWS).array
    sockets = make_rows([{"netns": OWN, **row} for row in SOCKETS])
    (found,) = flow_rows.find_owners(flows, np.array([protocol], np.uint8), sockets, OWN, TextTable())
    assert (found["socket"] or None) == (owner and owner["id"])


UDP_FLOW: Row = {"id": 1} | ends("10.0.0.1", 53, "10.0.0.9", 9)


def owner_of(*sockets: Row) -> tuple[str | None, int | None]:
    """Return the process of a flow of UDP, by name and PID, among these sockets."""
    rows = make_rows([{"netns": OWN, "protocol": "udp", "remote_port": None, **opened} for opened in sockets])
    texts = TextTable()
    flows = make_rows([UDP_FLOW], FLOWS).array
    (owner,) = flow_rows.find_owners(flows, np.array([UDP], np.uint8), rows, OWN, texts)
    return named(owner, texts)


def named(owner: Any, texts: TextTable) -> tuple[str | None, int | None]:
    """Return an owner's name and PID."""
    unknown = np.iinfo(np.uint32).max
    name = None if owner["process"] == unknown else texts.frozen()[owner["process"]]
    return name, None if owner["pid"] == unknown else int(owner["pid"])


AT_53 = {"local_address": "10.0.0.1", "local_port": 53, "remote_address": "0.0.0.0"}
A, B = AT_53 | {"process": "a", "pid": 7}, AT_53 | {"process": "b", "pid": 8}
ELSEWHERE = {"local_address": "10.0.0.2"}


@pytest.mark.parametrize(
    ("sockets", "owner"),
    [
        ([A, B], ("(several)", None)),
        ([A, A | {"pid": 8}], ("a", None)),
        ([A, A], ("a", 7)),
        ([A, AT_53], ("a", 7)),
        ([A, B | {"local_address": "0.0.0.0"}], ("a", 7)),
        ([A | ELSEWHERE], (None, None)),
        ([A | ELSEWHERE, B], ("b", 8)),
    ],
    ids=["programs", "processes", "sockets", "nobody's", "any address", "another", "each address"],
)
def test_a_port_of_several(sockets: list[Row], owner: tuple[str | None, int | None]) -> None:
    """If sockets share a port (SO_REUSEPORT), a flow has only values common to all of them."""
    assert owner_of(*sockets) == owner


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 2**32 - 1])), max_size=12))
def test_agreeing_values_of_a_key(rows: list[tuple[int, int]]) -> None:
    """A key's values are the one that all known values share, or unknown."""
    rows.sort()
    keys, values = np.array(rows, "u4").reshape(-1, 2).T
    expected = [len({v for k, v in rows if k == key and v != 2**32 - 1}) <= 1 for key, _ in rows]
    assert is_uniform(keys, values).tolist() == expected


OWNERS = st.tuples(st.integers(1, 3), st.sampled_from([None, "a", "b"]), st.sampled_from([None, 7, 8]))
"""A socket, and its process by name and PID."""


@given(st.lists(OWNERS, min_size=1, max_size=6))
def test_a_port_that_others_reuse(readings: list[tuple[int, str | None, int | None]]) -> None:
    """Over readings a flow keeps one process, or has several: never a process that owns only some of its packets."""
    texts = TextTable()
    owner = flow_rows.no_owners(1)
    names = set()
    for socket, name, pid in readings:
        now = flow_rows.no_owners(1)
        if name is not None:
            now["socket"], now["process"] = socket, texts.code(name)
            now["pid"] = np.iinfo(np.uint32).max if pid is None else pid
        owner = flow_rows.merge_owners(now, owner, texts)
        names |= {(socket, name, pid)} if name is not None else set()
    name, _ = named(owner[0], texts)
    last = next((reading for reading in reversed(readings) if reading[1] is not None), None)
    assert name in (last and last[1], "(several)")
    if len({socket for socket, _, _ in names}) == len(names) and len({name for _, name, _ in names}) > 1:
        by_pid = {pid for _, _, pid in names}
        assert name == "(several)" or (len(by_pid) == 1 and None not in by_pid)


NEAR: Row = UDP_FLOW | {"netns": OWN, "protocol": "tcp", "process": "a", "pid": 7}
FAR = {"id": 2, "netns": CONTAINER, "protocol": "tcp", "process": "a", "pid": 8} | ends(
    "10.0.0.9", 9, "10.0.0.1", 53
)


@pytest.mark.parametrize(
    "readings",
    [[[NEAR, FAR], [FAR]], [[FAR], [NEAR, FAR]], [[NEAR], [FAR], []]],
    ids=["ends", "begins", "both"],
)
def test_the_near_end_owns_a_flow(readings: list[list[Row]]) -> None:
    """The far end, in another network namespace, is no owner beside the near end, even once that has closed."""
    texts, owner = TextTable(), flow_rows.no_owners(1)
    flows, protocols = make_rows([UDP_FLOW], FLOWS).array, np.array([TCP], np.uint8)
    for sockets in readings:
        owner = flow_rows.merge_owners(
            flow_rows.find_owners(flows, protocols, make_rows(sockets), OWN, texts), owner, texts
        )
    assert named(owner[0], texts) == ("a", 7)


def test_nobody_is_an_owner() -> None:
    """Without sockets or without flows there are no owners."""
    flows = make_rows([{"id": 1, "local_address": "10.0.0.1", "remote_address": "10.0.0.9"}], FLOWS).array
    protocols = np.array([TCP], np.uint8)
    for count, sockets in ((1, make_rows([])), (0, make_rows([WEB]))):
        found = flow_rows.find_owners(flows[:count], protocols[:count], sockets, OWN, TextTable())
        assert found.tolist() == flow_rows.no_owners(count).tolist()


# --- services ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "services"),
    [
        ("", []),
        ("redis=6379/tcp", [("redis", 6379, "tcp")]),
        ("redis=6379", [("redis", 6379, "tcp"), ("redis", 6379, "udp")]),
        (" a=1/udp , b=65535/tcp,", [("a", 1, "udp"), ("b", 65535, "tcp")]),
    ],
)
def test_services(text: str, services: list[tuple[str, int, str]]) -> None:
    """Several services are joined by commas; without a protocol both are meant."""
    assert parse_services(text) == services


@pytest.mark.parametrize("text", ["redis", "redis=", "=6379", "a=0", "a=65536", "a=1/sctp", f"{'n' * 25}=1"])
def test_no_services(text: str) -> None:
    """The error names the invalid service, or says how many there may be."""
    with pytest.raises(UsageError, match="is not NAME=PORT"):
        parse_services(f"web=8080,{text}")
    room = SERVICES_MAX - len({name for name, _, _ in SERVICES})
    most = ",".join(f"s{n}={n + 1}/tcp" for n in range(room))
    assert len(parse_services(f"{most},HTTP=8080/tcp")) == room + 1  # a known name needs no more room
    with pytest.raises(UsageError, match=f"there is room for {SERVICES_MAX}"):
        parse_services(f"{most},more=9/tcp")


# --- how received packets are seen ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xdp", "of_device", "of_veth"),
    [
        ("native", (NATIVE_MODE, TCX_MODE, GENERIC_MODE), (TCX_MODE, GENERIC_MODE)),
        ("tcx", (TCX_MODE, NATIVE_MODE, GENERIC_MODE), (TCX_MODE, GENERIC_MODE)),
        ("generic", (GENERIC_MODE, TCX_MODE), (GENERIC_MODE, TCX_MODE)),
        ("off", (), ()),
    ],
)
def test_modes(xdp: str, of_device: tuple[int, ...], of_veth: tuple[int, ...]) -> None:
    """Native XDP comes first on devices unless TCX is requested, and never on a veth."""
    assert modes_for(Link(2, "eth0", has_ethernet=True, has_parent=True), xdp) == of_device
    assert modes_for(Link(3, "veth0", kind="veth", has_ethernet=True), xdp) == of_veth


def test_numbers_of_a_thousand_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each interface has its own number in flows, even after place reuse."""
    monkeypatch.setattr(interfaces.bpf, "set_element", lambda *_: None)
    monkeypatch.setattr(interfaces.maps, "read_per_cpu", lambda *_: np.zeros(1, COUNTS))
    program: Any = SimpleNamespace(
        maps=dict.fromkeys(("interfaces", "received", "sent")), functions={}, refused={}
    )
    counted = interfaces.CountedInterfaces(program)
    link: Any = SimpleNamespace(has_ethernet=True, has_bus_device=lambda: False)
    seen: set[int] = set()
    for index in range(1, 1000):
        entered = counted.enter(SimpleNamespace(**vars(link), index=index), "off")  # type: ignore[arg-type]
        assert entered is not None
        seen.add(entered.number)
        counted.leave(entered)
    assert len(seen) == 999


def test_nobody_watches_a_server() -> None:
    """An unattended nettop leaves network cards' queues alone unless told otherwise."""
    view = [find_table("bandwidth")]
    for how, expected in (({}, {}), ({"unattended": True}, {XDP: "tcx"}), ({"log": True}, {XDP: "tcx"})):
        values = parse_lens_options({}, 1.0, view, **how)
        assert {option: value for option, value in values.items() if option is XDP} == expected
    given = parse_lens_options({"xdp": "native"}, 1.0, view, unattended=True)
    assert given[XDP] == "native"
