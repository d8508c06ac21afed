# SPDX-License-Identifier: Apache-2.0
"""Findings: the rules' thresholds, their sentences, how long they last, and which one explains which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nettop.kernel.host.facts import Host
from nettop.probes.findings.cpus import read_cpus
from nettop.probes.findings.interrupts import DeviceQueue, Interrupts
from nettop.query.filter import parse_filter
from nettop.query.finding_tracker import KEPT_S, FindingTracker
from nettop.query.findings import GROUPS_MAX, find, parsed_rules, threshold
from nettop.query.found import causes_of
from nettop.query.place import Place
from nettop.query.query import screen_query
from nettop.query.sentences import _reads, filled
from nettop.query.units import UNKNOWN
from nettop.query.view import View
from nettop.snapshots import all_rules, find_table, lenses
from nettop.snapshots.bandwidth import INTERFACES
from nettop.snapshots.connections import FAILURES, SOCKETS
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.drops import COUNTERS, PACKETS
from nettop.snapshots.findings import CPUS, FINDINGS, FIREWALL, LATE, LIMITS, LOSSES
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Lens, Rule, Severity, Table
from nettop.snapshots.services import BUCKETS, SERVICES
from nettop.snapshots.snapshot import Frame, Snapshot, unknown_value
from tests.builders.findings import (
    BEFORE,
    GONE,
    LISTENER,
    NONE,
    STUCK,
    UNREAD,
    WAITING,
    Readings,
    after,
    cause_of,
    found,
    kinds,
    kinds_of,
    listed,
)
from tests.unit.build import TAKEN_NS, WALL_NS, Row, example_rows, histogram_of, make_frame

ALL_RULES = [(lens, table, rule) for lens in lenses() for table in lens.tables for rule in table.rules]
DATAGRAMS = {**BEFORE, "protocol": "udp", "state": "UNCONN", "drops": 2_803}
RETRANSMITTING = {**BEFORE, "bytes_acked": 900, "retransmits": 10, "data_packets_sent": 500}
BLACK_HOLE = {**BEFORE, "lost": 1, "cwnd": 1, "send_queue": 9_000, "packets_received": 1}

SLOW = {"side": "served", "process": "webapp", "address": "0.0.0.0", "port": 7020, "recent_p99": 1_600_000_000,
         "response": histogram_of([1_500_000_000] * 9, BUCKETS)}  # fmt: skip


@pytest.mark.parametrize(
    ("now", "kind"),
    [
        (LISTENER | {"accept_queue": 7}, None),
        (WAITING | {"last_sent_ms": 9_999}, None),
        (WAITING | {"process": "web", "pid": 3}, None),
        (LISTENER | {"accept_queue": 0}, None),
        (LISTENER | {"syn_queue": 7}, None),
        (LISTENER | {"syn_queue": 8}, "SYN queue full"),
        (LISTENER | {"syn_queue": None}, None),
        # What a connection has in its queues is no backlog.
        ({"receive_queue": 8, "send_queue": 10}, None),
        (STUCK, "send queue stuck"),
        (STUCK | {"bytes_acked": 501}, None),
        (STUCK | {"busy_us": 400_000}, None),
        (STUCK | {"send_queue": 0}, None),
        (STUCK | {"busy_us": None}, None),
        ({**BEFORE, "probes": 2}, "idle peer gone"),
        ({**BEFORE, "probes": 1}, None),
        # Probes of a closed window.
        ({**BEFORE, "probes": 2, "send_queue": 1}, None),
        (RETRANSMITTING, "retransmitting"),
        (RETRANSMITTING | {"retransmits": 9}, None),
        (RETRANSMITTING | {"spurious": 4}, "retransmitting"),
        (RETRANSMITTING | {"spurious": 5}, None),
        (RETRANSMITTING | {"spurious": None}, "retransmitting"),
        (RETRANSMITTING | {"data_packets_sent": 501}, None),
        # Few segments, but many of them lost.
        (RETRANSMITTING | {"retransmits": 2, "data_packets_sent": 20}, "retransmitting"),
        (RETRANSMITTING | {"retransmits": 1, "data_packets_sent": 20}, None),
        (RETRANSMITTING | {"retransmits": 2, "data_packets_sent": 9}, None),
        (UNREAD, "data unread"),
        (UNREAD | {"receive_queue": 4095}, None),
        (UNREAD | {"bytes_received": 301}, None),
        (UNREAD | {"state": "CLOSE_WAIT"}, None),
        (DATAGRAMS, "losing datagrams"),
        (DATAGRAMS | {"drops": 3}, None),
        (DATAGRAMS | {"protocol": "tcp", "state": "LISTEN"}, None),
        (BLACK_HOLE, "path MTU black hole"),
        (BLACK_HOLE | {"cwnd": 3}, None),
        (BLACK_HOLE | {"bytes_acked": 501}, None),
        (BLACK_HOLE | {"lost": 0}, None),
        # Nothing comes back at all.
        (BLACK_HOLE | {"packets_received": 0}, None),
        ({**BEFORE, "data_packets_sent": 100, "mss": 536}, "small segments"),
        ({**BEFORE, "data_packets_sent": 100, "mss": 537}, None),
        ({**BEFORE, "data_packets_sent": 1000, "bytes_sent": 10_100}, "tiny sends"),
        ({**BEFORE, "data_packets_sent": 999, "bytes_sent": 10_100}, None),
        ({**BEFORE, "data_packets_sent": 1000, "bytes_sent": 100_100}, None),
        # Long ago: nothing of it in the last interval.
        ({**BEFORE, "bytes_acked": 501}, None),
    ],
)  # fmt: skip
def test_a_row_is_a_finding_from_its_threshold_on(now: Row, kind: str | None) -> None:
    """A little less, or what nobody measured, is none."""
    assert kinds(found([now], [BEFORE])) == ([] if kind is None else [kind])


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (LISTENER | {"accept_queue": 8}, ["accept queue full"]),
        (LISTENER | {"accept_queue": 11}, ["accept queue full"]),
        (GONE, ["peer gone", "send queue stuck"]),
        (GONE | {"peer_window": 0}, ["send queue stuck"]),
        (GONE | {"last_received_ms": 1_999}, ["send queue stuck"]),
    ],
)
def test_a_row_may_match_a_special_rule_and_a_general_one(now: Row, expected: list[str]) -> None:
    """The special one, which explains the general one, comes first."""
    assert kinds(found([now], [BEFORE])) == expected


@pytest.mark.parametrize(
    ("table", "before", "now", "sentence"),
    [
        (FAILURES, {"failed": 2, "failures": 2},
         {"direction": "outbound", "reason": "no local port", "process": "fetcher", "remote_address": "10.91.0.2",
          "port": 7005, "failed": 28, "failures": 28},
         "fetcher cannot connect to 10.91.0.2:7005: no local port, 26/s"),
        (FAILURES, {"failed": 2, "failures": 2},
         {"direction": "outbound", "reason": "refused", "process": "fetcher", "remote_address": "10.91.0.2",
          "port": 7005, "failed": 28, "failures": 28},
         "fetcher cannot connect to 10.91.0.2:7005: refused, 26/s"),
        (FAILURES, {"failed": 0, "failures": 0},
         {"direction": "inbound", "reason": "timed out", "port": 7040, "failed": 12, "failures": 12},
         "12 connects/s to port 7040 of (unattributed) fail: timed out"),
        (PACKETS, {"packets": 5},
         {"reason": "NETFILTER_DROP", "process": "payapi", "port": 7008, "packets": 7, "place": "nft_do_chain",
          "meaning": "a rule of nftables or iptables"},
         "2 packets/s for payapi :7008 are dropped on this host by a rule of nftables or iptables"),
        (PACKETS, {"packets": 5}, {"reason": "NETFILTER_DROP", "port": 7008, "packets": 7}, None),
        (PACKETS, {"packets": 5}, {"reason": "NO_SOCKET", "protocol": "udp", "port": 53, "packets": 10},
         "5 datagrams/s arrive at UDP port 53, where nobody listens"),
        (PACKETS, {"packets": 5},
         {"reason": "SOCKET_RCVBUFF", "severity": "trouble", "meaning": "receive buffer full", "packets": 10},
         "5 packets/s are dropped: receive buffer full"),
        (COUNTERS, {"packets": 5}, {"name": "TcpExtListenOverflows", "namespace": "own", "packets": 6},
         "1 handshakes/s are dropped because an accept queue is full"),
        (COUNTERS, {"packets": 5}, {"name": "TcpExtListenOverflows", "namespace": "web", "packets": 6},
         "1 handshakes/s are dropped because an accept queue is full in namespace web"),
        (COUNTERS, {"packets": 5}, {"name": "TcpExtTCPReqQFullDoCookies", "packets": 305},
         "300 SYNs/s meet a full SYN queue: a flood, or answers that are lost"),
        (COUNTERS, {"packets": 5}, {"name": "Udp6RcvbufErrors", "packets": 6},
         "1 UDP datagrams/s are dropped because a receive buffer is full"),
        (COUNTERS, {"packets": 5}, {"name": "UdpNoPorts", "packets": 9}, None),
        (INTERFACES, {"errors": 5}, {"errors": 6, "interface": "eth0", "kind": "ether"},
         "eth0 has 1 receive or send errors/s"),
        (INTERFACES, {"drops_sent": 0, "drops_received": 0},
         {"drops_sent": 10, "drops_received": 0, "interface": "eth0"},
         "eth0 drops 0 received and 10 sent packets/s"),
        (INTERFACES, {"bytes_received": 0, "bytes_sent": 0, "capacity": 0},
         {"bytes_received": 91, "bytes_sent": 5, "capacity": 100, "interface": "eth0"},
         "eth0 is almost full: 91.0% in, 5.0% out"),
        (INTERFACES, {}, {"state": "unplugged", "link_ups": 1, "kind": "ether", "interface": "eth0",
                          "namespace": "web"}, "eth0 in web has lost its link"),
        (INTERFACES, {}, {"state": "unplugged", "link_ups": 0, "kind": "ether", "interface": "eth0"}, None),
        (INTERFACES, {}, {"state": "up", "duplex": "half", "interface": "eth0"},
         "eth0 cannot send and receive at once: its link is half duplex"),
        (INTERFACES, {}, {"state": "up", "duplex": "full", "interface": "eth0"}, None),
        (INTERFACES, {}, {"state": "unplugged", "duplex": "half", "interface": "eth0"}, None),
        (LIMITS, {}, {"resource": "conntrack entries", "used": 209_716, "limit": 262_144, "when_full": "new ones drop"},
         "conntrack entries: 209,716 of 262,144 in use; once full, new ones drop"),
        (LIMITS, {}, {"resource": "conntrack entries", "used": 209_715, "limit": 262_144, "when_full": "x"}, None),
        (LIMITS, {}, {"resource": "conntrack entries", "used": 162_000, "limit": 262_144, "growth": 417.4,
                      "full_in": 240_000_000_000, "when_full": "new ones drop"},
         "conntrack entries: 162,000 of 262,144 in use and 417.4 more each second: full in 240 s; then new ones drop"),
        (LIMITS, {}, {"resource": "conntrack entries", "used": 131_071, "limit": 262_144, "full_in": 1}, None),
        (LIMITS, {}, {"resource": "conntrack entries", "used": 162_000, "limit": 262_144, "full_in": 301_000_000_000},
         None),
        (LIMITS, {}, {"resource": "conntrack entries", "used": 162_000, "limit": 262_144, "full_in": None}, None),
        (LOSSES, {"lost": 5}, {"lens": "Services", "what": "udp requests", "lost": 125, "meaning": "too many are open"},
         "nettop loses 120/s in Services: too many are open"),
        (LOSSES, {"lost": 5}, {"lens": "Services", "what": "udp requests", "lost": 14, "meaning": "x"}, None),
        (LOSSES, {"lost": 5}, {"lens": "all", "what": LATE, "lost": 7, "meaning": "x"},
         "nettop skips 2 readings/s: one takes longer than the interval"),
        (LOSSES, {"lost": 5}, {"lens": "all", "what": LATE, "lost": 5, "meaning": "x"}, None),
        (LIMITS, {}, {"resource": "local ports to 10.91.0.2:7005", "used": 188, "limit": 200, "when_full": "x"},
         "local ports to 10.91.0.2:7005: 188 of 200 in use; once full, x"),
        (CPUS, {"dropped": 0}, {"cpu": 3, "dropped": 5}, "CPU 3 drops 5 received packets/s: its backlog is full"),
        (CPUS, {"softirq_ns": 0, "elsewhere_ns": 0}, {"cpu": 3, "softirq_ns": 920_000_000, "elsewhere_ns": 30_000_000},
         "CPU 3 spends 92.0% of its time in softirqs, the others 3.00%"),
        (CPUS, {"softirq_ns": 0, "elsewhere_ns": 0},
         {"cpu": 3, "softirq_ns": 920_000_000, "elsewhere_ns": 500_000_000}, None),
        (FIREWALL, {"packets": 5},
         {"affects": "port", "action": "drop", "port": 7008, "counted": "yes", "packets": 7, "table": "filter",
          "chain": "input", "comment": "no pay", "process": "payapi"},
         "nftables drops 2 packets/s for payapi :7008 in table filter, chain input (no pay)"),
        (FIREWALL, {"packets": 5},
         {"affects": "all", "action": "reject", "counted": "yes", "packets": 7, "table": "filter", "chain": "input",
          "namespace": "web"},
         "nftables rejects 2 packets/s in table filter, chain input of namespace web"),
        (FIREWALL, {"packets": None},
         {"affects": "port", "action": "drop", "port": 7008, "counted": "no", "table": "filter", "chain": "input"},
         "nftables drops packets for :7008, without counting them, in table filter, chain input"),
        (FIREWALL, {"packets": None},
         {"affects": "all", "action": "drop", "counted": "no", "table": "filter", "chain": "input",
          "comment": "policy"},
         "nftables drops what no rule accepted, without counting it, in table filter, chain input (policy)"),
        (FIREWALL, {"packets": None}, {"affects": "some", "action": "drop", "counted": "no"}, None),
        (SERVICES, {"responses": 8},
         {"speed": "slower", "side": "used", "process": "nginx", "address": "10.0.0.1", "port": 7020,
          "recent_p99": 1_500_000_000, "usual_p99": 800_000, "responses": 9},
         "nginx gets responses of 10.0.0.1:7020 in 1.50 s, 800 µs before"),
        (SERVICES, {"response": NONE}, SLOW,
         "webapp 0.0.0.0:7020 needs 1.54 s for half of its responses; its usual time is not known yet"),
        (SERVICES, {"response": NONE}, SLOW | {"usual_p99": 1_400_000_000}, None),
        (SERVICES, {"response": NONE}, SLOW | {"side": "used"}, None),
    ],
)  # fmt: skip
def test_sentences(table: Table, before: Row, now: Row, sentence: str | None) -> None:
    """A finding names who, where and how much; a row below the threshold, or without an owner, is none."""
    findings = found([now], [now | before], table=table)
    assert [finding.sentence for finding in findings] == ([] if sentence is None else [sentence])


def test_the_other_end_of_a_connection_is_named() -> None:
    """Both ends of a connection on this host know each other; elsewhere, that part of the sentence is left out."""
    reader = UNREAD | {
        "local_address": "10.0.3.7",
        "local_port": 7000,
        "remote_address": "10.0.3.7",
        "remote_port": 60_968,
    }
    writer = {**BEFORE, "process": "ordersvc", "pid": 8, "local_address": "10.0.3.7", "local_port": 60_968,
              "remote_address": "10.0.3.7", "remote_port": 7000}  # fmt: skip
    (alone,) = found([reader], [reader])
    assert alone.sentence == "reportd 10.0.3.7:7000 has not read 129 kB from 10.0.3.7:60968 for 40.0 s"
    (both,) = found([reader, writer], [reader, writer])
    assert both.sentence == f"{alone.sentence}; ordersvc waits for it"
    assert both.advice == "see what reportd 25406 does instead: ps, its log, cat /proc/25406/stack"


@pytest.mark.parametrize(
    ("was", "arrived", "because"),
    [
        (129_000, 0, ", because reportd does not read"),
        (129_000, 4_000, ""),
        (127_000, 2_000, ", because reportd does not read"),
        (127_000, 2_001, ""),
        (130_000, 0, ""),
    ],
)
def test_a_slow_reader_reads(was: int, arrived: int, because: str) -> None:
    """It does not read if all that came waits too; otherwise its connection is stuck all the same."""
    ends = {"state": "ESTABLISHED", "local_address": "10.0.3.7", "remote_address": "10.0.3.7", "netns": 1}
    reader = BEFORE | ends | {"id": 1, "local_port": 7000, "remote_port": 5001}
    writer = (
        STUCK | ends | {"id": 2, "process": "ordersvc", "pid": 8, "local_port": 5001, "remote_port": 7000}
    )
    findings = found(
        [reader | {"receive_queue": 129_000, "bytes_received": 300 + arrived}, writer],
        [reader | {"receive_queue": was, "bytes_received": 300}, writer | {"busy_us": 0}],
    )
    (stuck,) = [finding.sentence for finding in findings if finding.rule.name == "send queue stuck"]
    assert stuck == f"ordersvc cannot send to 10.0.3.7:7000: 1 B wait{because}"


def test_a_reader_that_has_just_come() -> None:
    """Nothing is known of what it has read before, also if there were no sockets at all."""
    for before in ([], [BEFORE | {"id": 9}]):
        view = View(make_frame([BEFORE | {"id": 1, "receive_queue": 9}], before), screen_query(SOCKETS))
        assert _reads(view, np.array([0])).tolist() == [False]


@pytest.mark.parametrize(
    ("addresses", "target"),
    [(("fd78::2",), "[fd78::2]:443"), ([f"198.51.100.{n}" for n in range(9)], "198.51.100.0:443 and 8 more")],
)
def test_where_connects_fail(addresses: Iterable[str], target: str) -> None:
    """The port is told from an IPv6 address, and from the number of others."""
    failed = [{"direction": "outbound", "reason": "refused", "process": "fetcher", "remote_address": address,
               "port": 443, "failed": 3, "failures": 3, "id": n} for n, address in enumerate(addresses)]  # fmt: skip
    (finding,) = found(failed, [row | {"failed": 2, "failures": 2} for row in failed], table=FAILURES)
    assert finding.sentence == f"fetcher cannot connect to {target}: refused, {len(failed)}/s"


def test_a_flood_is_said_to_come_from_many() -> None:
    """How many addresses have half-open connections to this port, if not just one."""
    flooded = LISTENER | {"id": 1, "syn_queue": 8, "local_port": 443, "netns": 1}
    half_open = [
        {**BEFORE, "id": 10 + n, "state": "SYN_RECV", "local_port": 443, "process": None, "pid": None,
         "remote_address": f"198.51.100.{n % 3}"}
        for n in range(6)
    ]  # fmt: skip
    for rows, said in ((half_open, ", from 3 addresses; their"), (half_open[:1], "of 10; their")):
        (finding,) = [each for each in found([flooded, *rows]) if each.rule.name == "SYN queue full"]
        assert said in finding.sentence


@pytest.mark.parametrize(
    ("address", "target", "netns", "is_named"),
    [
        ("10.0.3.7", "10.0.3.7", 9, True),
        ("10.0.3.7", "10.0.3.8", 1, False),
        ("0.0.0.0", "127.0.0.1", 1, True),
        ("0.0.0.0", "127.0.0.1", 2, False),
    ],
)
def test_the_sender_of_datagrams_is_named(address: str, target: str, netns: int, *, is_named: bool) -> None:
    """Its sockets are connected to the one that loses them; one without an address has those of its namespace."""
    losing = DATAGRAMS | {"id": 1, "process": "statsd", "local_port": 8125, "local_address": address,
                          "receive_queue": 5_824}  # fmt: skip
    sending = {**BEFORE, "id": 2, "protocol": "udp", "process": "floodd", "remote_address": target,
               "remote_port": 8125, "netns": netns}  # fmt: skip
    (finding,) = found([losing, sending], [losing | {"drops": 3}, sending])
    assert finding.sentence.endswith("; floodd sends them" if is_named else "full, with 5.8 kB")


def test_who_waits_for_a_slow_service_is_named() -> None:
    """The process that uses it at the same address, if it is on this host."""
    slow = {"id": 1, "speed": "slower", "side": "served", "process": "webapp", "address": "10.0.0.1", "port": 7020,
            "recent_p99": 1_500_000_000, "usual_p99": 800_000, "responses": 9}  # fmt: skip
    client = {"id": 2, "side": "used", "process": "nginx", "address": "10.0.0.1", "port": 7020}
    for other, said in ((client, "before; nginx waits for it"), (client | {"port": 7021}, "before")):
        (finding,) = found([slow, other], [slow | {"responses": 8}, other], table=SERVICES)
        assert finding.sentence.endswith(said)


@pytest.mark.parametrize(
    ("remotes", "retransmits", "kind"),
    [
        (1, 1, "losing segments"),
        (20, 1, "losing segments to many"),
        (1, 0, None),
    ],
)
def test_connections_that_lose_segments_together(remotes: int, retransmits: int, kind: str | None) -> None:
    """Each sends too few to be judged alone: five segments a second, one of them again."""
    before = [BEFORE | {"id": n, "remote_address": f"203.0.113.{n % remotes}"} for n in range(20)]
    now = [row | {"data_packets_sent": 5, "retransmits": retransmits, "bytes_acked": 900} for row in before]
    findings = found(now, before)
    assert kinds(findings)[:1] == ([] if kind is None else [kind])
    if kind is not None:
        assert "sends 20.0% of its segments" in findings[0].sentence
        assert findings[0].rows == 20


def test_evidence_says_first_what_it_is_about() -> None:
    """The end of a long filter is cut on a small screen."""
    (finding,) = found([LISTENER | {"accept_queue": 8}])
    assert finding.filter == "pid=7 and local_port=443 and state=LISTEN accept_queue_use>=80%"


def test_a_flood_shows_its_senders() -> None:
    """The half-open connections to the listener, which have no process."""
    half_open = [{"state": "SYN_RECV", "netns": 1, "remote_port": 5000 + n} for n in range(3)]
    elsewhere = {"state": "SYN_RECV", "netns": 1, "local_port": 8443}
    frame = make_frame([LISTENER | {"syn_queue": 8, "netns": 1}, *half_open, elsewhere])
    (finding,) = find(parsed_rules(CONNECTIONS, SOCKETS), frame)
    assert finding.filter == "local_port=443 and netns=1 and state=SYN_RECV"
    shown = View(frame, replace(screen_query(SOCKETS), filter=parse_filter(SOCKETS, finding.filter)))
    assert shown.values("remote_port", shown.order) == [5000, 5001, 5002]


QUERY: Row = {**BEFORE, "protocol": "udp", "state": "ESTABLISHED", "remote_port": 53, "local_port": 50_000,
              "messages_sent": 1, "messages_received": 0, "process": "workerd"}  # fmt: skip


@pytest.mark.parametrize(
    ("now", "before", "is_found"),
    [
        (QUERY, QUERY, True),
        (QUERY, QUERY | {"messages_sent": 0}, False),
        (QUERY | {"messages_sent": 2}, QUERY, False),
        (QUERY | {"messages_received": 1}, QUERY, False),
        (QUERY | {"messages_sent": 0}, QUERY | {"messages_sent": 0}, False),
        (QUERY | {"messages_sent": 3}, QUERY | {"messages_sent": 2}, True),
        (QUERY | {"remote_port": 123}, QUERY, False),
        (QUERY | {"messages_sent": None}, QUERY | {"messages_sent": None}, False),
    ],
)
def test_queries_without_an_answer(now: Row, before: Row, *, is_found: bool) -> None:
    """They were sent before the last reading, or are many: a lens that times them would show more."""
    findings = [finding for finding in found([now], [before]) if finding.rule.name == "DNS unanswered"]
    assert [finding.view for finding in findings] == (["services"] if is_found else [])


def test_values_that_differ_are_counted() -> None:
    """A finding of several rows names one of their peers and how many others there are, all that waits, and the longest
    time."""
    rows = [UNREAD | {"remote_port": 5000 + n, "receive_queue": 100_000 + n * 1000} for n in range(3)]
    (finding,) = found(rows, rows)
    assert finding.sentence.startswith(
        "reportd 10.0.3.7:443 has not read 303 kB from 203.0.113.9:5000 and 2 more for 40.0 s"
    )
    assert finding.rows == 3


def test_all_is_well_on_a_quiet_host() -> None:
    """Without changed rows, or before two readings, nothing is found."""
    rows = example_rows(60)
    assert found(rows, rows) == []
    assert found(rows) == []
    assert found([STUCK, RETRANSMITTING]) == []


def close_wait(number: int) -> list[Row]:
    """Return `number` connections closed only by the peer, and a healthy one."""
    closed = {"state": "CLOSE_WAIT", "process": "leaker", "pid": 4, "send_queue": 0}
    return [*({**closed, "id": 1 + at} for at in range(number)), {"id": 100_000}]


@pytest.mark.parametrize(
    ("before", "now", "is_found"),
    [
        (0, 19, False),
        (19, 20, False),
        (20, 21, True),
        (20, 20, False),
        (21, 20, False),
        (99, 99, False),
        (100, 100, True),
        (130, 100, True),
    ],
)
def test_close_wait_counts_where_it_grows_or_is_much(before: int, now: int, *, is_found: bool) -> None:
    """A busy server always has some; more each time are never closed."""
    findings = found(close_wait(now), close_wait(before), 2.0)
    assert [finding.rows for finding in findings] == ([now] if is_found else [])


def test_close_wait_counts_what_stays() -> None:
    """A busy proxy has others in each reading; at the first one, nobody knows."""
    others = [row | {"id": row["id"] + 1000} for row in close_wait(300)]
    assert found(others, close_wait(200), 1.0) == []
    assert found(close_wait(10_000)) == []
    (finding,) = found(close_wait(10_000), close_wait(10_000))
    assert finding.sentence == "leaker leaves 10,000 connections open that their peers have closed"


def test_a_short_interval_says_nothing_of_a_stuck_queue() -> None:
    """The round trip may take longer; a reading that is a little early still counts."""
    assert found([STUCK | {"busy_us": 200_000}], [BEFORE], elapsed_s=0.2) == []
    assert kinds(found([STUCK], [BEFORE], elapsed_s=0.95)) == ["send queue stuck"]


def test_findings_are_told_apart_by_what_they_are_about() -> None:
    """One for each process; with too many, they are told apart by less, and no row is left out."""
    few = [UNREAD | {"pid": n, "process": f"p{n}"} for n in range(GROUPS_MAX)]
    assert len(found(few, few)) == GROUPS_MAX
    many = [UNREAD | {"pid": n, "process": "worker"} for n in range(100)]
    (finding,) = found(many, many)
    assert (finding.rows, finding.process) == (100, "worker")
    different = [UNREAD | {"pid": n, "process": f"p{n}"} for n in range(100)]
    (finding,) = found(different, different)
    assert (finding.rows, finding.process) == (100, None)
    assert finding.sentence.startswith("p0 and 99 more 10.0.3.7:443 has not read")


# --- over time ----------------------------------------------------------------------------------------------------


def test_a_finding_is_raised_at_once_and_kept_for_a_while() -> None:
    """It keeps its ID and its beginning, which its row may know better; ten seconds after it was last seen, it is
    dropped."""
    readings = Readings()
    (first,) = readings.sockets([UNREAD])
    assert (first["lasted"], first["unseen"], first["rank"]) == (40 * 10**9, 0, 1)
    (second,) = readings.sockets([UNREAD | {"receive_queue": 200_000, "last_received_ms": 1}])
    assert (second["id"], second["since"], second["lasted"]) == (first["id"], first["since"], 41 * 10**9)
    assert "200 kB" in second["finding"]
    for second_gone in range(1, int(KEPT_S) + 1):
        (kept,) = readings.sockets([BEFORE])
        assert (kept["lasted"], kept["unseen"]) == (41 * 10**9, second_gone * 10**9)
    assert readings.sockets([BEFORE]) == []


def test_a_finding_that_comes_back_in_time_goes_on() -> None:
    """Its beginning stays."""
    readings = Readings()
    (first,) = readings.sockets([UNREAD])
    readings.sockets([BEFORE])
    (back,) = readings.sockets([UNREAD])
    assert (back["since"], back["lasted"], back["unseen"]) == (first["since"], 42 * 10**9, 0)


def test_some_findings_are_raised_only_after_a_while() -> None:
    """Rows must match all the time until then: a single pause begins anew."""
    readings = Readings()
    tiny = {**BEFORE, "data_packets_sent": 1000, "bytes_sent": 10_100}
    assert [readings.sockets([tiny], [BEFORE]) for _ in range(2)] == [[], []]
    assert readings.sockets([BEFORE]) == []
    assert [kinds_of(readings.sockets([tiny], [BEFORE])) for _ in range(3)] == [[], [], ["tiny sends"]]


def test_a_connect_that_fails_again_is_a_finding() -> None:
    """A single one is not; the second may come several seconds later, but not a minute."""
    failing = {"direction": "outbound", "reason": "refused", "failed": 6, "failures": 6}
    once = CONNECTIONS, make_frame([failing], [failing | {"failed": 5, "failures": 5}], table=FAILURES)
    never = CONNECTIONS, make_frame([failing], [failing], table=FAILURES)
    for pause, kinds_found in ((9, ["connects fail"]), (11, [])):
        readings = Readings()
        assert readings.add(once) == []
        assert [readings.add(never) for _ in range(pause)] == [[]] * pause
        assert kinds_of(readings.add(once)) == kinds_found


def test_a_frame_is_evaluated_once() -> None:
    """If its lens was not read again, its findings are still seen."""
    readings = Readings()
    frame = make_frame([UNREAD], [UNREAD])
    readings.add((CONNECTIONS, frame))
    ((row),) = readings.add((CONNECTIONS, frame))
    assert (row["lasted"], row["unseen"]) == (41 * 10**9, 0)


def test_a_cause_explains_what_follows_from_it() -> None:
    """A full listener explains the failing connects to its port, and these are no finding of their own; connects to
    another port are."""
    full = LISTENER | {"accept_queue": 11, "local_port": 7003, "local_address": "10.0.0.2"}
    failure = {"direction": "outbound", "reason": "timed out", "process": "web", "remote_address": "10.0.0.2",
               "failed": 5, "failures": 5}  # fmt: skip
    before = [failure | {"port": port, "id": port} for port in (7003, 7004)]
    now = [row | {"failed": 9, "failures": 9} for row in before]
    rows = after(2, (SOCKETS, [full], [full]), (FAILURES, before, now))
    (listener,) = (row for row in rows if row["kind"] == "accept queue full")
    causes = {row["finding"].split(":")[1]: row["cause"] for row in rows if row["kind"] == "connects fail"}
    assert causes == {"7003": listener["id"], "7004": None}
    assert listener["explains"] == "web cannot connect to 10.0.0.2:7003: timed out, 4/s"


def test_what_an_interface_loses_is_not_explained_by_its_namespace() -> None:
    """Neither failing connects elsewhere nor a process, but the same port or the same interface, not one that only has
    the same name in another namespace."""
    failing = Place(ports=frozenset({9099}), namespaces=frozenset({1}))
    lost = Place(interfaces=frozenset({("eth0", 1)}), namespaces=frozenset({1}))
    counted = Place(namespaces=frozenset({1}))
    assert not failing.may_explain(lost, dict)
    assert failing.may_explain(counted, dict)
    assert failing.may_explain(replace(lost, ports=frozenset({9099})), dict)
    assert Place(interfaces=frozenset({("eth0", 1)})).may_explain(lost, dict)
    assert not Place(interfaces=frozenset({("eth0", 2)})).may_explain(lost, dict)


def test_a_cpu_explains_what_interfaces_lose() -> None:
    """It works for all of them; what another CPU does is not explained by it."""
    busy = Place(cpus=frozenset({1}))
    assert busy.may_explain(Place(interfaces=frozenset({("eth0", 1)}), namespaces=frozenset({1})), dict)
    assert busy.may_explain(busy, dict)
    assert not busy.may_explain(Place(cpus=frozenset({0})), dict)


FULL = {**LISTENER, "accept_queue": 11, "local_port": 443, "local_address": "0.0.0.0", "protocol": "tcp"}
ACCEPTED = {**BEFORE, "id": 99, "local_address": "10.0.0.2", "local_port": 443, "state": "ESTABLISHED"}
RULE = {"affects": "port", "action": "drop", "port": 443, "protocol": "tcp", "counted": "yes", "netns": 1,
        "table": "filter", "chain": "input", "hook": "input"}  # fmt: skip


@pytest.mark.parametrize(
    ("listener", "rule", "target", "is_explained"),
    [
        (FULL, None, "10.0.0.2", True),
        (FULL, None, "127.0.0.1", True),
        (FULL, None, "203.0.113.5", False),
        (FULL | {"local_address": "10.0.0.3"}, None, "10.0.0.2", False),
        (FULL | {"local_address": "10.0.0.3"}, None, "10.0.0.3", True),
        (None, RULE, "10.0.0.2", True),
        (None, RULE, "203.0.113.5", False),
        (None, RULE | {"protocol": "udp"}, "10.0.0.2", False),
        (None, RULE | {"hook": "output"}, "203.0.113.5", True),
        (None, RULE | {"hook": "output", "netns": 2}, "203.0.113.5", False),
        (None, RULE | {"hook": "forward"}, "203.0.113.5", False),
        (None, RULE | {"hook": "forward", "netns": 2}, "203.0.113.5", True),
        (None, RULE | {"hook": None}, "203.0.113.5", True),
        (None, RULE | {"port": 444}, "10.0.0.2", False),
    ],
)
def test_only_what_connects_can_reach_explains_that_they_fail(
    listener: Row | None, rule: Row | None, target: str, *, is_explained: bool
) -> None:
    """A listener or a rule of this host does not make a connect to the same port of another host fail."""
    failure = {"direction": "outbound", "reason": "timed out", "process": "web", "port": 443, "netns": 1,
               "remote_address": target, "failed": 2, "failures": 2}  # fmt: skip
    sockets = [ACCEPTED, *([] if listener is None else [listener])]
    rows = after(
        2,
        (FAILURES, [failure], [failure | {"failed": 9, "failures": 9}]),
        (SOCKETS, sockets, sockets),
        *([] if rule is None else [(FIREWALL, [rule | {"packets": 5}], [rule | {"packets": 9}])]),
    )
    assert (cause_of(rows, "connects fail") is not None) == is_explained


def test_clients_of_the_same_port_explain_only_connects_to_the_same_address() -> None:
    """One host that does not answer is not why another one refuses."""
    silent = {**BEFORE, "state": "SYN_SENT", "lost": 1, "remote_port": 443, "local_port": 50_000,
              "remote_address": "203.0.113.9", "direction": "outbound"}  # fmt: skip
    failure = {"direction": "outbound", "reason": "timed out", "process": "reportd", "port": 443, "netns": 1,
               "failed": 2, "failures": 2}  # fmt: skip
    before = [failure | {"id": last, "remote_address": f"203.0.113.{last}"} for last in (9, 5)]
    now = [row | {"failed": 9, "failures": 9} for row in before]
    rows = after(2, (SOCKETS, [silent], [silent]), (FAILURES, before, now))
    (cause,) = [row["id"] for row in rows if row["kind"] == "connects unanswered"]
    causes = {row["finding"].split(" ")[4]: row["cause"] for row in rows if row["kind"] == "connects fail"}
    assert causes == {"203.0.113.9:443:": cause, "203.0.113.5:443:": None}


def test_the_only_cpu_has_no_others(tmp_path: Path) -> None:
    """The time of others is unknown, so that no rule compares with it."""
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 300 0\ncpu0 0 0 0 0 0 0 100 0\ncpu1 0 0 0 0 0 0 200 0\n")
    two = read_cpus(tmp_path, {}, 1).array
    assert two["elsewhere_ns"].tolist() == two["softirq_ns"].tolist()[::-1]
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 100 0\ncpu0 0 0 0 0 0 0 100 0\n")
    one = read_cpus(tmp_path, {}, 1).array["elsewhere_ns"]
    assert one.tolist() == [unknown_value(one.dtype)]


def interrupts(root: Path, by_irq: Mapping[str, tuple[int, int]]) -> None:
    """Write how often each has interrupted CPU 0 and CPU 2, in the form of the kernel."""
    lines = [
        f"{irq.split()[0]:>4}: {a:>10} {b:>10}  PCI-MSIX {irq.split()[1]}" for irq, (a, b) in by_irq.items()
    ]
    (root / "proc/interrupts").write_text(
        "\n".join(["      CPU0       CPU2", *lines, " NMI:   1   2   NMIs", ""])
    )


def test_the_queue_that_interrupts_a_cpu_most(tmp_path: Path) -> None:
    """Since the last reading, not since boot; disks are no part of it, however busy."""
    for number, (device_class, irqs) in enumerate({"0x020000": (45, 46), "0x010802": (47,)}.items()):
        device = tmp_path / f"sys/bus/pci/devices/0000:00:0{number}.0"
        (device / "msi_irqs").mkdir(parents=True)
        (device / "class").write_text(f"{device_class}\n")
        for irq in irqs:
            (device / f"msi_irqs/{irq}").touch()
    (tmp_path / "proc").mkdir()
    by_root = Interrupts(Host(tmp_path))
    assert by_root.busiest() == {}
    before = {"45 eth0-rx-0": (10**9, 10**9), "46 eth0-rx-1": (0, 0), "47 nvme0q1": (0, 0)}
    interrupts(tmp_path, before)
    assert by_root.busiest() == {}
    interrupts(
        tmp_path, {"45 eth0-rx-0": (10**9, 10**9 + 1), "46 eth0-rx-1": (0, 900), "47 nvme0q1": (5000, 5000)}
    )
    queues = by_root.busiest()
    assert queues == {2: DeviceQueue(46, "eth0-rx-1")}
    by_root.forget()
    assert by_root.busiest() == {}
    (tmp_path / "proc/stat").write_text("cpu0 0 0 0 0 0 0 100 0\ncpu2 0 0 0 0 0 0 200 0\n")
    frame = Frame(Snapshot("findings", 1, 1, {CPUS.name: read_cpus(tmp_path / "proc", queues, 1)}))
    view = View(frame, screen_query(CPUS))
    named = {name: view.values(name, view.order) for name in ("cpu", "irq", "queue")}
    assert named == {"cpu": [0, 2], "irq": [None, 46], "queue": [None, "eth0-rx-1"]}


def test_a_saturated_cpu_names_its_queue() -> None:
    """With the number of the interrupt; without it, the rest of the sentence stays."""
    second = {"cpu": 2, "elsewhere_ns": 10**8, "processed": 0, "squeezed": 0, "dropped": 0}
    for queue, named in (({"queue": "eth0-rx-1", "irq": 46}, "; eth0-rx-1 (IRQ 46) interrupts it"), ({}, "")):
        now, before = (
            {**second, "softirq_ns": busy, "elsewhere_ns": busy // 10} for busy in (950_000_000, 0)
        )
        frame = make_frame([now | queue], [before], table=CPUS, lens="findings")
        readings = Readings()
        readings.add((FINDINGS_LENS, frame))
        (row,) = readings.add((FINDINGS_LENS, frame))
        assert row["finding"] == f"CPU 2 spends 95.0% of its time in softirqs, the others 9.50%{named}"


def test_connects_without_a_local_port_explain_the_limit() -> None:
    """One finding, which names the process and the sockets in TIME_WAIT; another limit stays."""
    failure = {"direction": "outbound", "reason": "no local port", "process": "fetcher", "port": 7005, "netns": 1,
               "remote_address": "10.91.0.2", "failed": 2, "failures": 2}  # fmt: skip
    now = failure | {"failed": 28, "failures": 28}
    failing = make_frame([now], [failure], table=FAILURES, counts={"time_wait": 28_231})
    ports = {"resource": "local ports to 10.91.0.2:7005", "used": 200, "limit": 200, "netns": 1}
    entries = {"id": 2, "resource": "conntrack entries", "used": 9, "limit": 10, "netns": 1}
    limits = FINDINGS_LENS, make_frame([ports, entries], table=LIMITS, lens="findings")
    readings = Readings()
    readings.add((CONNECTIONS, failing), limits)
    rows = readings.add((CONNECTIONS, failing), limits)
    assert kinds_of([row for row in rows if row["cause"] is None]) == ["no local port", "near a limit"]
    assert rows[0]["finding"] == (
        "fetcher cannot connect to 10.91.0.2:7005: no local port, 26/s; this host has 28,231 in TIME_WAIT"
    )


def test_the_same_port_elsewhere_is_another_matter() -> None:
    """Two readers that are stuck explain their own writers only, though both listen on the same port."""

    def ends(netns: int, client_port: int) -> list[Row]:
        common = {"netns": netns, "state": "ESTABLISHED"}
        local, remote = ("local_port", "remote_port")
        reader = (
            UNREAD | common | {"pid": netns, local: 7000, remote: client_port, "remote_address": "10.0.3.7"}
        )
        writer = STUCK | common | {"process": "ordersvc", "pid": netns + 100, local: client_port, remote: 7000,
                                   "remote_address": "10.0.3.7"}  # fmt: skip
        return [reader, writer]

    now = [*ends(1, 5001), *ends(2, 5002)]
    rows = Readings().sockets(now, [row | {"busy_us": 0} for row in now])
    readers = {row["netns"]: row["id"] for row in rows if row["kind"] == "data unread"}
    writers = {row["netns"]: row["cause"] for row in rows if row["kind"] == "send queue stuck"}
    assert writers == readers


def test_problems_come_before_hints() -> None:
    """Those that have gone come last: whoever opens the first one shall see its rows."""
    tiny = {**BEFORE, "id": 9, "pid": 9, "data_packets_sent": 1000, "bytes_sent": 10_100}
    readings = Readings()
    before = [BEFORE, BEFORE | {"id": 9, "pid": 9}]
    readings.sockets([UNREAD, tiny], before)
    readings.sockets([BEFORE, tiny], before)
    rows = readings.sockets([STUCK | {"pid": 3}, tiny], before)
    assert kinds_of(rows) == ["send queue stuck", "tiny sends", "data unread"]
    assert [row["severity"] for row in rows] == ["problem", "hint", "problem"]


some = st.one_of(st.none(), st.integers(0, 12))
rows_of_any_kind = st.lists(
    st.fixed_dictionaries(
        {
            "process": st.sampled_from([None, "web", 'o"dd']),
            "local_port": st.sampled_from([443, 80]),
            "protocol": st.sampled_from(["tcp", "udp"]),
            "state": st.sampled_from(
                ["ESTABLISHED", "CLOSE_WAIT", "LISTEN", "SYN_RECV", "TIME_WAIT", "UNCONN", None]
            ),
            "receive_queue": st.sampled_from([None, 0, 5_000]),
            "drops": some,
            **dict.fromkeys(("accept_queue", "send_queue", "syn_queue", "bytes_acked"), some),
            "backlog": st.one_of(st.none(), st.integers(0, 12)),
            "busy_us": st.sampled_from([None, 0, 950_000]),
            "retransmits": st.sampled_from([None, 0, 9, 12]),
            "data_packets_sent": st.sampled_from([None, 0, 20, 5_000]),
            "bytes_sent": st.sampled_from([None, 0, 900_000]),
            "id": st.integers(1, 20),
        }
    ),
    max_size=20,
    unique_by=lambda row: row["id"],
)


UNCONNECTED = {"id": 1, "protocol": "udp", "state": "UNCONN", "process": "statsd", "pid": 1}


@given(rows_of_any_kind, rows_of_any_kind)
@example([UNCONNECTED | {"drops": 12}], [UNCONNECTED | {"drops": 0}])
def test_the_filter_of_a_finding_shows_its_rows(now: list[Row], before: list[Row]) -> None:
    """Without --all, as many rows as the finding counts, whatever the table shows by default."""
    frame, query = make_frame(now, before), screen_query(SOCKETS)
    declared = parsed_rules(CONNECTIONS, SOCKETS)
    rules = tuple(
        replace(rule, rule=replace(rule.rule, min_rows=1))
        for rule in declared.rules
        if not rule.rule.proof[0]  # these show other rows
    )
    for finding in find(replace(declared, rules=rules), frame):
        shown = View(frame, replace(query, filter=parse_filter(SOCKETS, finding.filter)))
        at = shown.order
        assert finding.rows == (~shown.gone[at] & ~shown.rest[at]).sum()


# --- the rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lens", "table", "rule"), ALL_RULES, ids=lambda value: getattr(value, "name", ""))
def test_each_rule_is_sound(lens: Lens, table: Table, rule: Rule) -> None:
    """Its filter and the columns that tell its findings apart exist, and so do the kinds that explain it."""
    parse_filter(table, rule.filter)
    assert set(rule.by) <= {field.name for field in table.stored}
    others = {other.name for _, _, other in ALL_RULES}
    assert {*rule.explained_by, *rule.explained_in_process} <= others - {rule.name}
    view, wanted = rule.proof
    if view:
        parse_filter(find_table(view)[1], wanted)
    assert lens.id


def test_kinds_have_one_meaning_each() -> None:
    """No two rules share a name, and none explains itself, not even through others."""
    explained_by = {rule.name: rule.explained_by for _, _, rule in ALL_RULES}
    assert len(explained_by) == len(ALL_RULES)
    for name, causes in explained_by.items():
        seen, following = set(), list(causes)
        while following:
            cause = following.pop()
            assert cause != name
            if cause not in seen:
                seen.add(cause)
                following += explained_by[cause]


def test_a_silent_next_hop_is_the_cause() -> None:
    """That nothing answers ARP explains why a connect gets no response, or fails with that; no other failure, nor the
    other way round."""
    dropped = {"netns": 1, "interface": "eth0", "severity": "trouble", "meaning": "next hop silent",
               "reason": "NEIGH_FAILED", "packets": 0}  # fmt: skip
    drops = (PACKETS, [dropped], [dropped | {"packets": 9}])
    waiting = {**BEFORE, "state": "SYN_SENT", "lost": 1, "remote_port": 7008, "local_port": 50_000}
    rows = after(1, drops, (SOCKETS, [waiting], [waiting]))
    assert cause_of(rows, "next hop silent") is None
    assert cause_of(rows, "connects unanswered") == "next hop silent"
    assert {row["severity"] for row in rows} == {"problem"}
    for reason, cause in (
        ("host unreachable", "next hop silent"),
        ("timed out", "next hop silent"),
        ("refused", None),
    ):
        failure = {"direction": "outbound", "reason": reason, "process": "x", "port": 7005, "netns": 1,
                   "remote_address": "10.91.0.2", "failed": 2, "failures": 2}  # fmt: skip
        rows = after(2, drops, (FAILURES, [failure], [failure | {"failed": 28, "failures": 28}]))
        assert cause_of(rows, "connects fail") == cause, reason
        assert cause_of(rows, "next hop silent") is None


def test_a_rule_of_the_firewall_only_explains() -> None:
    """The rules of a healthy host drop all the time; one for the port of another finding is its cause. An uncounted one
    explains only drops that were seen."""
    rule = RULE | {"port": 7008, "packets": 5}
    uncounted = rule | {"counted": "no", "packets": None}
    growing, still = (FIREWALL, [rule], [rule | {"packets": 7}]), (FIREWALL, [uncounted], [uncounted])
    waiting = {**BEFORE, "state": "SYN_SENT", "lost": 1, "remote_port": 7008, "local_port": 50_000}
    unanswered = (SOCKETS, [waiting], [waiting])
    dropped = {"reason": "NETFILTER_DROP", "packets": 0, "process": "payapi", "port": 7008, "netns": 1}
    drops = (PACKETS, [dropped], [dropped | {"packets": 2}])

    assert after(1, growing) == []
    assert {row["kind"]: row["explains"] for row in after(1, growing, unanswered)} == {
        "connects unanswered": None,
        "firewall rule drops": "reportd gets no answer to connects to 203.0.113.9:7008: 1 waiting",
    }
    assert kinds_of(after(1, still, unanswered)) == ["connects unanswered"]
    by_kind = {row["kind"]: row for row in after(1, still, unanswered, drops)}
    assert by_kind.keys() == {"connects unanswered", "firewall drops", "firewall rule may drop"}
    cause = by_kind.pop("firewall rule may drop")
    assert {row["cause"] for row in by_kind.values()} == {cause["id"]}
    assert (cause["cause"], cause["certainty"]) == (None, "possible")


def test_thresholds_in_words() -> None:
    """They are those in the help and the documents."""
    rule = Rule("x", "state=CLOSE", "says", "what it means", "advice", min_rows=1000, min_growing_rows=10,
                min_interval_s=0.5, after_s=2)  # fmt: skip
    expected = "from 1,000 rows on, or 10 and growing, after 2 s, if the interval is 0.5 s or more"
    assert threshold(rule) == expected
    assert threshold(Rule("x", "", "", "", "")) == "at once"
    assert threshold(Rule("x", "", "", "", "", only_explains=True)) == "if it explains another finding"
    assert Severity.PROBLEM is rule.severity


def test_the_cause_of_a_row() -> None:
    """The finding that a row belongs to, or what explains that finding; nothing for others, nor once it has gone."""
    common = {"netns": 1, "state": "ESTABLISHED", "remote_address": "10.0.3.7"}
    reader = UNREAD | common | {"id": 1, "pid": 1, "local_port": 7000, "remote_port": 5001}
    writer = (
        STUCK | common | {"id": 2, "process": "ordersvc", "pid": 2, "local_port": 5001, "remote_port": 7000}
    )
    other = {**BEFORE, "id": 3, "pid": 3}
    rows = [reader, writer, other]
    tracker = FindingTracker()
    frame = make_frame(rows, [row | {"busy_us": 0} for row in rows])
    view = View(frame, screen_query(SOCKETS))
    keys = view.raw("id").tolist()
    frames = make_frame([], lens="findings", table=FINDINGS)
    for second, is_seen in ((1, True), (5, False)):
        shown = [(CONNECTIONS, frame)] if is_seen else []
        found_rows = tracker.update(shown, TAKEN_NS + second * 10**9, WALL_NS + second * 10**9)
        found_frame = replace(frames, now=replace(frames.now, tables={FINDINGS.name: found_rows}))
        causes = {key: causes_of(view, at, found_frame) for at, key in enumerate(keys)}
        unread = (
            [row["finding"] for row in listed(found_rows) if row["kind"] == "data unread"] if is_seen else []
        )
        assert causes == {1: unread, 2: unread, 3: []}
    assert causes_of(view, 0, None) == []


def test_no_advice_names_an_unknown_process_id() -> None:
    """In a container, the processes outside of it have none."""
    for _, _, rule in all_rules().values():
        values = {name: None if name == "pid" else name for name in re.findall(r"{(\w+)}", rule.advice)}
        assert UNKNOWN not in filled(rule.advice, values)
