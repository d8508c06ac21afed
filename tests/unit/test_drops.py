# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the drops lens: names of reasons, rows and their numbers, counters, the headline's text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.bpf import drop_reasons
from nettop.kernel.bpf.drop_reasons import NO_REASON, DropReasons
from nettop.kernel.net.client_ports import read_client_ports
from nettop.kernel.net.links import Link
from nettop.probes.drops import counters as drop_counters
from nettop.probes.drops import probe
from nettop.probes.drops.ports import UnseenSyns
from nettop.probes.drops.probe import COUNT, KIND, Drops, NamespaceCounters, program_text
from nettop.query.filter import parse_filter
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.screens.drops import DropsScreen, by_reason, row_flags, top_reason
from nettop.selftest.rows import rows_of
from nettop.snapshots.arrays import Array
from nettop.snapshots.drops import COUNTERS, OF_CPUS, OF_DEVICES, OF_NAMESPACES, PACKETS, REASONS
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.cells import RowFlags
from tests.builders.arrays import zero_rows
from tests.options import source_options

from .build import TAKEN_NS, WALL_NS, Row, make_frame, make_rows, make_view

NAMES = {0: "NOT_DROPPED_YET", 1: "CONSUMED", 2: "NOT_SPECIFIED", 12: "NETFILTER_DROP"}
COUNTER_TEXTS = OF_NAMESPACES | OF_DEVICES | OF_CPUS
THESE = DropReasons(4, NAMES, {1: "MAC80211_UNUSABLE", 2: "OPENVSWITCH"})


# --- reasons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasons", "number", "name"),
    [
        (THESE, 12, "NETFILTER_DROP"),
        (THESE, 999, "999"),
        (THESE, 2 << 16 | 3, "OPENVSWITCH 3"),
        (THESE, 7 << 16 | 5, "subsystem 7 5"),
        (DropReasons(2), 0, None),
    ],
)
def test_names_of_reasons(reasons: DropReasons, number: int, name: str | None) -> None:
    """A reason without a name is its number, after the name or number of its subsystem; older kernels have none."""
    assert reasons.name(number) == name
    assert reasons.has_reasons == (reasons is THESE)
    assert (THESE.number("CONSUMED"), THESE.number("NO_SUCH")) == (1, NO_REASON)


@pytest.mark.parametrize(
    ("arguments", "defined"), [(2, set()), (3, {"REASON_CONSUMED"}), (4, {"REASON_CONSUMED", "HAS_RECEIVER"})]
)
def test_the_program_asks_for_no_argument_that_is_not_there(arguments: int, defined: set[str]) -> None:
    """The verifier refuses an argument that this kernel's tracepoint does not have."""
    defines = program_text(DropReasons(arguments, NAMES), (32768, 60999)).defines
    assert {"REASON_CONSUMED", "HAS_RECEIVER"} & defines.keys() == defined


def test_a_name_loses_one_prefix() -> None:
    """Some reasons are called SKB_DROP_REASON_SKB_…: their names are those of the kernel's list."""

    class Reasons:
        def enumerators(self, _: str) -> dict[int, str]:
            return {1: "SKB_DROP_REASON_SKB_CSUM", 2: "SKB_CONSUMED", 3: "OTHER"}

    names = drop_reasons._names(Reasons(), "any", "SKB_DROP_REASON_", "SKB_")  # type: ignore[arg-type]
    assert names == {1: "SKB_CSUM", 2: "CONSUMED", 3: "OTHER"}


# --- the program ----------------------------------------------------------------------------------------------


def test_the_ports_of_clients(tmp_path: Path) -> None:
    """Client ports are the kernel's setting, or its default if unreadable; the program gets both ends."""
    assert read_client_ports(tmp_path) == (32768, 60999)
    setting = tmp_path / "sys/net/ipv4/ip_local_port_range"
    setting.parent.mkdir(parents=True)
    setting.write_text("1024\t65000\n")
    assert read_client_ports(tmp_path) == (1024, 65000)
    defines = program_text(THESE, (1024, 65000)).defines
    assert (defines["CLIENT_PORTS_FIRST"], defines["CLIENT_PORTS_LAST"]) == (1024, 65000)


# --- rows -----------------------------------------------------------------------------------------------------


class Program:
    """A replacement for the kernel's program: it returns these kinds of drops, and evicts none."""

    kinds_max = 4096

    def __init__(self, *drops: tuple[dict[str, int], int, int]) -> None:
        self.reasons = THESE
        self.kinds = zero_rows(KIND, *(kind for kind, _, _ in drops))
        self.totals = np.array([(packets, size) for _, packets, size in drops], COUNT)

    def read(self) -> tuple[Array, Array]:
        """Return the counts."""
        return self.kinds, self.totals

    def lost(self) -> dict[str, int]:
        """Return no losses."""
        return {"untracked": 0, "recursion": 0}

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class Functions:
    """The kernel's functions: one every 0x100 bytes, but none below 0x1000."""

    def refresh(self) -> bool:
        """Return False: the functions stay the same."""
        return False

    def __len__(self) -> int:
        return 1

    def find(self, address: int) -> tuple[str, int] | None:
        """Return the function at that address, and how far into it."""
        return None if address < 0x1000 else (f"f_{address >> 8:x}", address & 0xFF)


NETNS = os.stat("/proc/self/ns/net").st_ino
LO = {"netns": NETNS, "ifindex": 1, "reason": 12, "family": 0x0800, "protocol": 17}
PORT = {"port": 80, "has_owner": 1}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Program], Snapshot]]:
    """Read a probe whose program counted these drops."""
    monkeypatch.setattr(probe, "read_namespace", lambda proc: NamespaceCounters({}, {}, [Link(1, "lo")]))
    source = Drops()
    source.configure(source_options(mechanisms={"packets": "none"}))
    source.start()
    source._symbols = Functions()  # type: ignore[assignment]

    def read(program: Program) -> Snapshot:
        source._count = program  # type: ignore[assignment]
        return source.read(17)

    read.source = source  # type: ignore[attr-defined]
    yield read
    source.close()


def shown(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the rows of packets, with texts, and None for what is unknown."""
    rows = snapshot.tables["packets"]
    return rows_of(rows, np.ones(len(rows), bool))


def test_drops_at_several_addresses_of_a_function_are_one_row(read: Callable[[Program], Snapshot]) -> None:
    """Packets and bytes of addresses in one function are summed, and the details list each address, largest first."""
    snapshot = read(
        Program(
            (LO | {"location": 0x1510}, 3, 300),
            (LO | {"location": 0x1520}, 2**62, 2**63),
            (LO | {"location": 0x1610}, 5, 50),
        )
    )
    first, second = sorted(shown(snapshot), key=lambda row: str(row["place"]))
    assert (first["place"], first["packets"], first["bytes"]) == ("f_15", 2**62 + 3, 2**63 + 300)
    assert (second["place"], second["packets"], second["bytes"]) == ("f_16", 5, 50)
    assert snapshot.counts["drops"] == 2**62 + 8
    details = read.source.describe(first["id"])  # type: ignore[attr-defined]
    assert details["Dropped at"] == f"f_15+0x20 ({2**62:,}), f_15+0x10 (3)"
    assert first["meaning"] == REASONS["NETFILTER_DROP"].meaning
    assert read.source.describe(99) == {}  # type: ignore[attr-defined]


def test_rows_are_sorted_and_unknown_is_no_zero(read: Callable[[Program], Snapshot]) -> None:
    """Values that the program does not know are unknown; a device without a name has its number."""
    empty = read(Program()).tables["packets"]
    assert (len(empty), empty.array.dtype) == (0, PACKETS.dtype)
    unknown = {"location": 0x99, "reason": 999, "protocol": 255}
    snapshot = read(Program((LO | {"location": 0x1510}, 1, 9), (unknown, 0, 0), (LO | {"ifindex": 12}, 2, 8)))
    rows = shown(snapshot)
    ids = snapshot.tables["packets"].array["id"].tolist()
    assert ids == sorted(set(ids))
    (row,) = (row for row in rows if row["reason"] == "999")
    assert (row["place"], row["packets"]) == ("0x99", 0)
    assert {row[name] for name in ("protocol", "family", "interface", "netns")} == {None}
    assert {row["interface"] for row in rows} == {None, "lo", "if12"}
    assert {(row["protocol"], row["family"]) for row in rows if row["netns"]} == {("udp", "IPv4")}


def test_last_seen_is_the_refresh_that_counted_more(read: Callable[[Program], Snapshot]) -> None:
    """A row without new drops keeps its time and number, whatever rows come and go."""
    old, new = LO | {"location": 0x1510}, LO | {"location": 0x1610}
    first = read(Program((old, 3, 30)))
    second = read(Program((new, 1, 10), (old, 3, 30)))
    third = read(Program((old, 4, 40), (new, 1, 10)))

    def row(snapshot: Snapshot, place: str) -> tuple[int, int]:
        (match,) = (row for row in shown(snapshot) if row["place"] == place)
        return match["id"], match["last_seen"]

    number, other = row(first, "f_15")[0], row(second, "f_16")[0]
    assert number != other
    assert row(first, "f_15") == row(second, "f_15") == (number, first.wall_ns)
    assert row(second, "f_16") == row(third, "f_16") == (other, second.wall_ns)
    assert row(third, "f_15") == (number, third.wall_ns)


LISTENER = {"netns": NETNS, "protocol": "tcp", "local_port": 80, "state": "LISTEN"}
ACCEPTED = LISTENER | {"state": "ESTABLISHED"}
UNCONNECTED = {"netns": NETNS, "protocol": "udp", "local_port": 80, "state": "UNCONN"}
CONNECTED = UNCONNECTED | {"state": "ESTABLISHED"}


WEB, WORKER = {"process": "web", "pid": 7}, {"process": "worker", "pid": 3}
NOBODY = (None, None)


@pytest.mark.parametrize(
    ("kind", "sockets", "owner"),
    [
        ({"protocol": 6}, [ACCEPTED | WORKER, LISTENER | WEB], ("web", 7)),
        ({"protocol": 17}, [CONNECTED | WORKER, UNCONNECTED | WEB], ("web", 7)),
        ({"protocol": 17}, [UNCONNECTED | WEB | {"protocol": "tcp"}], NOBODY),
        ({"protocol": 6}, [LISTENER | WEB, LISTENER | WORKER], ("(several)", None)),
        ({"protocol": 6}, [LISTENER | WEB, LISTENER | WEB | {"pid": 9}], ("web", None)),
        ({"protocol": 6}, [LISTENER | WEB] * 2, ("web", 7)),
        ({"protocol": 6}, [LISTENER, ACCEPTED | WORKER], ("worker", 3)),
        ({"protocol": 6}, [LISTENER | WEB | {"netns": NETNS + 1}], NOBODY),
        ({"protocol": 6}, [LISTENER | WEB | {"local_port": port} for port in (81, None)], NOBODY),
        ({"protocol": 6}, [LISTENER], NOBODY),
        ({"protocol": 6}, [], NOBODY),
        ({"protocol": 6}, None, NOBODY),
        ({"protocol": 1}, [LISTENER | WEB], NOBODY),
        # A router's own listener does not own the packets that it drops for others.
        ({"protocol": 6, "has_owner": 0}, [LISTENER | WEB], NOBODY),
        ({"protocol": 6, "has_owner": 0, "port": 0}, [LISTENER | WEB | {"local_port": 0}], NOBODY),
    ],
)
def test_owner_of_a_port(
    read: Callable[[Program], Snapshot],
    kind: dict[str, int],
    sockets: list[Row] | None,
    owner: tuple[str | None, int | None],
) -> None:
    """A port belongs to its listener, else to any socket; several have their common values. Without the connections
    lens, the port alone is known."""
    for rows in ([LISTENER | WEB], sockets):
        tables = {} if rows is None else {"sockets": make_rows(rows)}
        read.source.join({"connections": Frame(Snapshot("connections", WALL_NS, TAKEN_NS, tables))})  # type: ignore[attr-defined]
        (row,) = shown(read(Program((LO | PORT | kind, 3, 30))))
    assert (row["port"], row["process"], row["pid"]) == (kind.get("port", 80) or None, *owner)


def test_counters_of_a_namespace(
    read: Callable[[Program], Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drop counters of a namespace and its devices have rows and sums; devices that are not listed are lost."""
    counters = {"UdpRcvbufErrors": 2**64 - 2, "UdpInDatagrams": 9}
    links = [Link(2, "eth0", {"rx_dropped": 3, "rx_bytes": 8})]
    monkeypatch.setattr(probe, "read_namespace", lambda proc: NamespaceCounters(counters, {}, links))
    monkeypatch.setattr(drop_counters, "read_backlog_drops", lambda proc: {3: 5})
    snapshot = read(Program())
    rows = snapshot.tables["counters"]
    namespaces = read.source.namespaces.threads  # type: ignore[attr-defined]
    found = rows_of(rows, np.ones(len(rows), bool))
    names = ("name", "counter", "interface", "cpu", "packets")
    expected = [
        ("UdpRcvbufErrors", None, None, 2**64 - 2),
        ("rx_dropped", "eth0", None, 3),
        ("softnet_dropped", None, 3, 5),
    ]
    assert {tuple(row[name] for name in names) for row in found} == {
        (name, COUNTER_TEXTS[name], *others) for name, *others in expected
    }
    assert len(rows) == 2 * len(namespaces) + 1
    assert all((row["netns"] is None) == (row["name"] == "softnet_dropped") for row in found)
    assert snapshot.counts["device_drops"] == 3 * len(namespaces)
    assert snapshot.counts["backlog_drops"] == 5
    assert snapshot.lost["devices"] == 0
    monkeypatch.setattr(probe, "read_namespace", lambda proc: NamespaceCounters(counters, {}, None))
    assert read(Program()).lost["devices"] == len(namespaces)


def test_a_packet_of_several_counters_counts_once(
    read: Callable[[Program], Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals count a packet in ListenDrops and InErrors once, and a more specific counter if shown alone."""
    counters = {
        "TcpExtListenDrops": 1000,
        "TcpExtListenOverflows": 900,
        "TcpExtTCPReqQFullDrop": 50,
        "UdpInErrors": 70,
        "UdpRcvbufErrors": 60,
        "Udp6RcvbufErrors": 5,
        "UdpNoPorts": 3,
    }
    monkeypatch.setattr(probe, "read_namespace", lambda proc: NamespaceCounters(counters, {}, []))
    monkeypatch.setattr(drop_counters, "read_backlog_drops", lambda proc: {})
    snapshot = read(Program())
    namespaces = len(read.source.namespaces.threads)  # type: ignore[attr-defined]
    frame = Frame(snapshot, None)

    def total(filter_text: str) -> float | None:
        view = View(
            frame, replace(screen_query(COUNTERS), deltas=False, filter=parse_filter(COUNTERS, filter_text))
        )
        return view.total("packets", view.order)

    assert total("") == namespaces * (1000 + 70 + 5 + 3)
    assert total("name~Overflows") == namespaces * 900
    assert total("name~Udp") == namespaces * (70 + 5 + 3)


# --- the screen -------------------------------------------------------------------------------------------------


def frame_of(now: list[Row], before: list[Row] | None = None, **kwargs: Any) -> Frame:
    """Return two snapshots of the table of packets, a second apart."""
    return make_frame(now, before, table=PACKETS, lens="drops", **kwargs)


def row(number: int, reason: str | None, packets: int, place: str = "f") -> Row:
    """Return a row of the table of packets."""
    known_as = REASONS.get(reason or "")
    severity = known_as.severity if known_as is not None else None
    return {"id": number, "reason": reason, "severity": severity, "place": place, "packets": packets}


def test_the_top_reason_is_that_of_the_last_interval() -> None:
    """The last interval decides, not the total; rows of one reason are summed, and new rows count fully. Ordinary
    reasons stay out of the headline: every closing connection drops something."""
    before = [row(1, "NO_SOCKET", 1000), row(2, "XDP", 5)]
    now = [row(1, "NO_SOCKET", 1003), row(2, "XDP", 7), row(3, "XDP", 2, "g")]
    assert top_reason(frame_of(now, before)) == "XDP"
    assert top_reason(frame_of(now, now)) is None
    assert top_reason(frame_of(now)) is None
    ordinary = [row(1, "QUEUE_PURGE", 99), row(2, "XDP", 5)]
    assert top_reason(frame_of(ordinary, [row(1, "QUEUE_PURGE", 0), row(2, "XDP", 0)])) == "XDP"
    assert top_reason(frame_of(ordinary, [row(1, "QUEUE_PURGE", 0), row(2, "XDP", 5)])) is None
    no_reading = Snapshot("drops", 0, 0, {})
    assert top_reason(Frame(frame_of(now).now, no_reading)) is None


def test_without_reasons_places_stand_in() -> None:
    """Without reasons the function is shown instead."""
    shown_as = frame_of([row(1, None, 3), row(2, None, 4, "g")], missing={"reason": "too old"})
    assert by_reason(shown_as.now) == {"f": 3, "g": 4}
    assert by_reason(frame_of([]).now) == {}


def test_looks_of_rows() -> None:
    """A row is idle without recent drops, dim if harmless, and warns while harmful."""
    reasons = ["XDP", "OTHERHOST", None, "NOMEM", "NOMEM", "NO_SUCH_REASON"]
    dropped = [0, 1, 1, 1, 0, 1]
    before = [row(number, reason, 3) for number, reason in enumerate(reasons, 1)]
    now = [last | {"packets": 3 + more} for last, more in zip(before, dropped, strict=True)]
    view = make_view(frame_of(now, before), deltas=True)
    assert row_flags(view, np.arange(len(now))) == [
        RowFlags(idle=True),
        RowFlags(quiet=True),
        RowFlags(),
        RowFlags(failed=True),
        RowFlags(idle=True),
        RowFlags(),
    ]


# --- SYNs that listeners drop ---------------------------------------------------------------------------------------

OVERFLOWS = "TcpExtListenOverflows"


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 3, 50]), st.sampled_from([0, 1, 2]), st.sampled_from([80, 443, 8080])
        ),
        max_size=20,
    ),
    st.booleans(),
)
def test_unseen_syns_are_what_the_namespace_counts_beyond_what_is_seen(
    steps: list[tuple[int, int, int]], is_reset: bool
) -> None:
    """Each unseen SYN counts once, at the port whose listener dropped it.

    If the namespace's number was reused, the new one's counts are all new.
    """
    syns, expected = UnseenSyns(), dict.fromkeys((80, 443, 8080), 0)
    value, seen, drops = 7, 5, dict.fromkeys(expected, 3)

    def read(*, is_first: bool = False) -> None:
        listeners = {port: (port, count) for port, count in drops.items()}
        syns.add(1, {OVERFLOWS: value}, listeners, {OVERFLOWS: seen}, is_first=is_first)

    read(is_first=True)
    for unseen, in_sight, port in steps:
        value, seen = value + unseen + in_sight, seen + in_sight
        drops[port] += unseen
        expected[port] += unseen
        read()
    if is_reset and value > 12:
        value, seen = 4, 0
        drops[80] += 1
        expected[80] += 4
        read()
    assert dict(syns.counts) == {(1, OVERFLOWS, port): count for port, count in expected.items() if count}
    assert syns.forget(1) == sum(expected.values())


def test_unseen_syns_of_two_listeners_belong_to_neither() -> None:
    """Unseen SYNs of two listeners belong to neither; those of a listener that has gone stay its own."""
    syns = UnseenSyns()
    syns.add(1, {OVERFLOWS: 0}, {1: (80, 0), 2: (443, 0)}, {}, is_first=True)
    syns.add(1, {OVERFLOWS: 5}, {1: (80, 2), 2: (443, 3)}, {}, is_first=False)
    assert syns.counts == {(1, OVERFLOWS, 0): 5}
    syns.add(1, {OVERFLOWS: 7}, {2: (443, 3)}, {}, is_first=False)
    assert syns.counts[1, OVERFLOWS, 80] == 2


def test_unseen_syns_wait_for_what_is_seen_late() -> None:
    """Packets are read before counters, so that drops in between lower no number."""
    syns = UnseenSyns()
    syns.add(1, {OVERFLOWS: 0}, {}, {}, is_first=True)
    for value, seen, counted in ((3, 1, 2), (3, 3, 2), (5, 3, 2), (6, 3, 3)):
        syns.add(1, {OVERFLOWS: value}, {}, {OVERFLOWS: seen}, is_first=False)
        assert syns.counts[1, OVERFLOWS, 0] == counted


def test_why_a_table_is_empty() -> None:
    """An empty table says that nothing was dropped, or that nothing can be seen."""
    why_empty = DropsScreen.row_style.empty_text
    assert "nothing was dropped" in why_empty(make_view(frame_of([], via={"packets": "tp_btf/kfree_skb"})))
    assert "no tracepoint" in why_empty(make_view(frame_of([], via={"packets": "n/a: no tracepoint"})))
