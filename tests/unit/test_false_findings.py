# SPDX-License-Identifier: Apache-2.0
"""What looks like trouble, and is none, on hosts that work well; and causes that only look like one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nettop.kernel.net.links import Link
from nettop.probes.findings.interfaces import Interfaces
from nettop.query.finding_tracker import KEPT_S
from nettop.query.findings import find, parsed_rules
from nettop.snapshots import find_table
from nettop.snapshots.bandwidth import INTERFACES
from nettop.snapshots.bandwidth import LENS as BANDWIDTH
from nettop.snapshots.connections import FAILURES, GROUPS, SOCKETS
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.drops import COUNTERS, PACKETS
from nettop.snapshots.findings import CPUS, FIREWALL
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Severity, Table
from nettop.snapshots.services import BUCKETS, SERVICES
from nettop.snapshots.services import LENS as SERVICES_LENS
from nettop.snapshots.snapshot import Frame, Snapshot
from tests.builders.findings import (
    BEFORE,
    GONE,
    LISTENER,
    NONE,
    SECOND,
    UNREAD,
    WAITING,
    Readings,
    after,
    cause_of,
    found,
    kinds,
    severities,
)
from tests.unit.build import TAKEN_NS, WALL_NS, Row, histogram_of, make_frame

# --- services -----------------------------------------------------------------------------------------------------

SERVED: Row = {"id": 1, "side": "served", "process": "redis-server", "pid": 9, "netns": 1, "address": "0.0.0.0",
               "port": 6379, "protocol": "tcp", "speed": "stuck", "oldest": 600 * SECOND, "stalled": 9 * SECOND,
               "waiting": 1, "responses": 50, "response": NONE}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # It answered until a moment ago, and no more.
        ({"usual_p99": 800_000}, {"stuck service": "problem"}),
        ({"recent_p99": 800_000}, {"stuck service": "problem"}),
        # One client waits for news (BLPOP), others get their responses.
        ({"usual_p99": 800_000, "responses": 60}, {"unanswered requests": "hint"}),
        # A stream of logs, or a long poll: nothing was answered since nettop began to watch.
        ({}, {"unanswered requests": "hint"}),
        ({"side": "used", "usual_p99": 800_000}, {"waiting for a service": "problem"}),
        ({"side": "used"}, {"long waits": "hint"}),
    ],
)
def test_requests_that_wait(row: Row, expected: dict[str, str]) -> None:
    """They are a problem where a service has stopped to answer; the sentence says since when no data has come."""
    rows = after(3, (SERVICES, [SERVED], [SERVED | row]))
    assert severities(rows) == expected
    assert "9.00 s" in rows[0]["finding"]
    assert rows[0]["explains"] is None  # not the same again, as a hint


DNS: Row = {"id": 1, "side": "used", "process": "rspamd", "pid": 9, "netns": 1, "address": "10.0.0.53", "port": 53,
            "protocol": "udp", "responses": 0, "failed_responses": 0, "response": NONE}  # fmt: skip


@pytest.mark.parametrize(("failed", "kinds_found"), [(1, {}), (100, {"DNS failing": "problem"})])
def test_some_domains_are_always_broken(failed: int, kinds_found: dict[str, str]) -> None:
    """A tenth of the responses is not."""
    rows = after(3, (SERVICES, [DNS], [DNS | {"responses": 1000, "failed_responses": failed}]))
    assert severities(rows) == kinds_found


def test_one_slow_name_is_no_slow_server() -> None:
    """Another slow response within ten seconds is."""
    slow = make_frame([DNS | {"response": histogram_of([600_000_000], BUCKETS), "responses": 1}], [DNS],
                      table=SERVICES, lens="services")  # fmt: skip
    calm = make_frame([DNS], [DNS], table=SERVICES, lens="services")
    readings = Readings()
    assert [readings.add((SERVICES_LENS, frame)) for frame in (slow, calm, calm)] == [[], [], []]
    (row,) = readings.add((SERVICES_LENS, slow))
    assert row["kind"] == "DNS slow"


# --- connections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        # A FIN to a client that is gone: the kernel sends it again for minutes, the program has closed it.
        (GONE | {"state": "FIN_WAIT1", "process": None, "pid": None}, []),
        # Kernel threads hold connections of NFS and the like.
        (WAITING, []),
        # The child of sshd before a login lowers its own limit.
        ({**BEFORE, "descriptor": 4, "descriptors_max": 1}, []),
        (
            {**BEFORE, "descriptor": 1023, "descriptors_max": 1024},
            ["few descriptors left", "no descriptors left"],
        ),
    ],
)
def test_sockets_of_healthy_hosts(now: Row, expected: list[str]) -> None:
    """They are none."""
    assert kinds(found([now], [BEFORE])) == expected


@pytest.mark.parametrize(
    ("queue", "expected"), [(5_900_000, []), (6_000_000, ["data unread"]), (6_100_000, ["data unread"])]
)
def test_a_player_reads_slowly(queue: int, expected: list[str]) -> None:
    """More data cannot come until there is room, but it reads: less waits than before."""
    full = {**BEFORE, "process": "mpv", "state": "ESTABLISHED", "receive_queue": 6_000_000}
    assert kinds(found([full | {"receive_queue": queue}], [full])) == expected


@pytest.mark.parametrize(
    ("listener", "expected"),
    [({"process": "batchd", "pid": 4}, ["never accepts"]), ({"process": None, "pid": None}, []), (None, [])],
)
def test_a_connection_without_a_process(listener: Row | None, expected: list[str]) -> None:
    """It was not accepted if a process listens at its port; else the kernel itself uses it."""
    others = [] if listener is None else [{**LISTENER, **listener, "id": 7, "local_port": 7200, "netns": 1}]
    waiting = {**WAITING, "id": 8, "local_port": 7200, "netns": 1}
    assert kinds(found([waiting, *others], [waiting, *others])) == expected


@pytest.mark.parametrize("queue", [0, None])
def test_datagrams_that_a_filter_drops(queue: int | None) -> None:
    """No buffer is full; what a filter of the socket drops, such as that of IPAddressDeny=, or a wrong checksum, counts
    as its drops too."""
    denied = {**BEFORE, "protocol": "udp", "process": "statsd", "local_port": 8125, "receive_queue": queue}
    (finding,) = found([denied | {"drops": 23}], [denied])
    assert finding.sentence == "statsd 10.0.3.7:8125 loses 20 datagrams/s"


def test_a_connection_that_is_half_open_for_a_round_trip() -> None:
    """It fills the queue of a listener with a backlog of 1, but its SYN-ACK is answered."""
    listens = LISTENER | {"backlog": 1}
    readings = Readings()
    assert [readings.sockets([listens | {"syn_queue": n}]) for n in (0, 1, 0, 1, 0)] == [[]] * 5
    assert [len(readings.sockets([listens | {"syn_queue": 1}])) for _ in range(2)] == [0, 1]


FAILED: Row = {"direction": "outbound", "process": "curl", "port": 443, "netns": 1, "failed": 0, "failures": 0,
               "remote_address": "2a00:1450:4001::200e"}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"reason": "given up"}, {"connects given up": "hint"}),
        ({"reason": "network unreachable"}, {"connects without IPv6": "hint"}),
        ({"reason": "network unreachable", "remote_address": "198.51.100.9"}, {"connects fail": "problem"}),
        ({"reason": "timed out"}, {"connects fail": "problem"}),
        # It looks whether its collector runs.
        ({"reason": "refused", "process": "nettop", "remote_address": "127.0.0.1"}, {}),
        ({"reason": "refused", "process": None}, {"connects fail": "problem"}),
    ],
)
def test_programs_that_try_several_addresses(row: Row, expected: dict[str, str]) -> None:
    """What they give up, or cannot reach because the host has IPv4 only, is a hint."""
    failed = FAILED | row
    assert severities(after(3, (FAILURES, [failed], [failed | {"failed": 3, "failures": 3}]))) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("IpOutNoRoutes", {"no route": "problem"}), ("Ip6OutNoRoutes", {"no IPv6 route": "hint"})],
)
def test_no_route(name: str, expected: dict[str, str]) -> None:
    """Without one for IPv6, many hosts work well."""
    counter = {"name": name, "netns": 1, "packets": 5}
    assert severities(after(1, (COUNTERS, [counter], [counter | {"packets": 8}]))) == expected


def test_many_connections_that_open_and_stay() -> None:
    """They are not short."""
    group = {"group": "pushd", "pid": 4, "opened": 0, "closed": 0}
    assert after(4, (GROUPS, [group], [group | {"opened": 600}])) == []
    assert severities(after(4, (GROUPS, [group], [group | {"opened": 600, "closed": 600}]))) == {
        "short connections": "hint"
    }


# --- interfaces and CPUs ------------------------------------------------------------------------------------------


def test_a_tunnel_without_a_peer_for_an_address() -> None:
    """Its errors are no damaged cable."""
    tunnel = {"interface": "wg0", "kind": "wireguard", "netns": 1, "errors": 700}
    rows = after(1, (INTERFACES, [tunnel], [tunnel | {"errors": 701}]))
    assert severities(rows) == {"virtual interface errors": "hint"}
    assert "cable" not in rows[0]["advice"]


def test_what_an_interface_counted_before_it_came() -> None:
    """It belongs to no interval: it moved to another namespace, or its namespace could not be read once."""
    eth0 = Link(
        2, "eth0", {"rx_errors": 1234, "rx_dropped": 50_000}, is_up=True, has_carrier=True, has_parent=True
    )
    damaged = replace(eth0, statistics={"rx_errors": 1236, "rx_dropped": 50_000})
    interfaces, frame, sentences = Interfaces(), None, []
    for second, links in enumerate(((), (eth0,), (eth0,), (damaged,))):
        rows = interfaces.rows({1: (links, {})}, TAKEN_NS + second * SECOND, TAKEN_NS + second * SECOND)
        snapshot = Snapshot("bandwidth", WALL_NS, TAKEN_NS + second * SECOND, {INTERFACES.name: rows})
        frame = Frame(snapshot, None if frame is None else frame.now)
        sentences += [finding.sentence for finding in find(parsed_rules(BANDWIDTH, INTERFACES), frame)]
    assert sentences == ["eth0 has 2 receive or send errors/s"]


def test_shares_of_several_cpus_are_not_added_up() -> None:
    """Twelve that are busy most of the time are not busy for ten times the time."""
    cpus = [{"id": n, "cpu": n, "softirq_ns": 0, "elsewhere_ns": 0} for n in range(12)]
    busy = [row | {"softirq_ns": 9 * SECOND // 10, "elsewhere_ns": SECOND // 10} for row in cpus]
    (row,) = after(2, (CPUS, cpus, busy))
    assert row["finding"] == "CPU 0 and 11 more spends 90.0% of its time in softirqs, the others 10.0%"


# --- causes -------------------------------------------------------------------------------------------------------


WEB: Row = SERVED | {"process": "webapp", "pid": 20, "port": 8080, "usual_p99": 800_000}
STUCK_WEB = WEB | {"process": "payapi", "pid": 10, "netns": 11}
SLOW_WEB = WEB | {"id": 2, "speed": "slower", "recent_p99": SECOND}
FULL = LISTENER | {"accept_queue": 11, "local_port": 8080, "local_address": "0.0.0.0", "netns": 11}
FAILED_HERE: Row = FAILED | {"direction": "inbound", "reason": "timed out", "port": 8080, "process": "webapp",
                             "remote_address": "10.1.2.3"}  # fmt: skip
FAILS: Row = {"failed": 20, "failures": 20}
HTTPS = SERVED | {"port": 443, "usual_p99": 800_000}
USED_HTTPS = HTTPS | {"id": 2, "side": "used", "process": "billing", "pid": 20}
ON_LOOPBACK: Row = {"state": "ESTABLISHED", "local_address": "127.0.0.1", "remote_address": "127.0.0.1"}
UNREAD_THERE = UNREAD | ON_LOOPBACK | {"id": 1, "netns": 11, "local_port": 7000, "remote_port": 50_000}
SENDS = BEFORE | ON_LOOPBACK | {"id": 2, "process": "ordersvc", "pid": 20, "send_queue": 9_000, "local_port": 50_001,
                                "remote_port": 7000}  # fmt: skip
ELSEWHERE = FAILED | {"remote_address": "198.51.100.9"}
LOST: Row = {"id": 1, "reason": "SOCKET_RCVBUFF", "severity": "trouble", "meaning": "full", "netns": 1, "packets": 0,
             "port": 443, "process": "nginx", "protocol": "TCP"}  # fmt: skip
CPU_1: Row = {
    "id": 1,
    "cpu": 1,
    "softirq_ns": 0,
    "elsewhere_ns": 0,
    "processed": 0,
    "squeezed": 0,
    "dropped": 0,
}
CPU_0 = CPU_1 | {"id": 0, "cpu": 0}
MPV: Row = {**BEFORE, "process": "mpv", "direction": "outbound", "state": "ESTABLISHED", "receive_queue": 90_000,
            "local_port": 40_000, "remote_port": 443, "remote_address": "198.51.100.9", "netns": 1}  # fmt: skip
POLICY: Row = {"id": 1, "affects": "all", "action": "drop", "counted": "no", "netns": 1, "table": "filter",
               "chain": "input", "hook": "input", "comment": "policy", "family": "ip"}  # fmt: skip
RULE: Row = {"id": 1, "affects": "port", "action": "drop", "counted": "yes", "netns": 1, "table": "filter",
             "chain": "input", "hook": "input", "family": "ip", "protocol": "tcp", "port": 443,
             "packets": 0}  # fmt: skip
COUNTER: Row = {"id": 1, "netns": 1, "packets": 5}
SYN: Row = {**BEFORE, "state": "SYN_SENT", "lost": 1, "remote_port": 443}
UNHEARD: Row = {**WAITING, "id": 8, "local_port": 7200, "netns": 1}
PROXY: Row = {**LISTENER, "id": 7, "process": "proxyd", "pid": 9, "local_port": 7200, "netns": 1}
USED_UP: Row = {**BEFORE, "id": 6, "process": "proxyd", "state": "ESTABLISHED", "local_port": 7300, "descriptor": 1023,
                "descriptors_max": 1024}  # fmt: skip
Changed = tuple[Table, Row, Row]
"""A table, a row of it, and what is different in each reading."""


@pytest.mark.parametrize(
    ("kind", "cause", "changes"),
    [
        # All pods may listen on the same port.
        ("slow service", None, [(SERVICES, STUCK_WEB, {}), (SERVICES, SLOW_WEB | {"netns": 22}, {"responses": 60})]),
        ("slow service", "stuck service",
         [(SERVICES, STUCK_WEB, {}), (SERVICES, SLOW_WEB | {"netns": 11}, {"responses": 60})]),
        # The full listener of one drops no connects to another.
        ("connects here fail", None, [(SOCKETS, FULL, {}), (FAILURES, FAILED_HERE | {"netns": 22}, FAILS)]),
        ("connects here fail", "accept queue full",
         [(SOCKETS, FULL, {}), (FAILURES, FAILED_HERE | {"netns": 11}, FAILS)]),
        # All have a loopback interface, and may use the same port of it.
        ("send queue stuck", None,
         [(SOCKETS, UNREAD_THERE, {}), (SOCKETS, SENDS | {"netns": 22}, {"busy_us": 1_000_000})]),
        ("send queue stuck", "data unread",
         [(SOCKETS, UNREAD_THERE, {}), (SOCKETS, SENDS | {"netns": 11}, {"busy_us": 1_000_000})]),
        # A service here with the same port is not what a process waits for at another host.
        ("waiting for a service", None,
         [(SERVICES, HTTPS, {}), (SERVICES, USED_HTTPS | {"address": "203.0.113.50"}, {})]),
        ("waiting for a service", "stuck service",
         [(SERVICES, HTTPS, {}), (SERVICES, USED_HTTPS | {"address": "127.0.0.1"}, {})]),
        # Connects to the same port elsewhere do not explain what a listener here loses.
        ("losing packets", None, [(FAILURES, ELSEWHERE | {"reason": "refused"}, FAILS),
                                  (PACKETS, LOST | {"reason": "TCP_OFO_QUEUE_PRUNE"}, {"packets": 900})]),
        # They lack a route only if that is why they fail.
        ("no route", None, [(FAILURES, ELSEWHERE | {"reason": "refused"}, FAILS),
                            (COUNTERS, COUNTER | {"name": "IpOutNoRoutes"}, {"packets": 15})]),
        ("no route", "connects fail", [(FAILURES, ELSEWHERE | {"reason": "network unreachable"}, FAILS),
                                       (COUNTERS, COUNTER | {"name": "IpOutNoRoutes"}, {"packets": 15})]),
        # What another CPU drops does not explain that packets wait for this one.
        ("squeezed", "backlog drops", [(CPUS, CPU_0, {}), (CPUS, CPU_1, {"squeezed": 900, "dropped": 900})]),
        ("squeezed", None, [(CPUS, CPU_0, {"squeezed": 900}), (CPUS, CPU_1, {"dropped": 900})]),
        # Packets of a client that does not read are dropped because of it; those of a server at the port are not.
        ("losing packets", "data unread",
         [(SOCKETS, MPV, {}), (PACKETS, LOST | {"port": 40_000, "process": "mpv"}, {"packets": 900})]),
        ("losing packets", None, [(SOCKETS, MPV, {}), (PACKETS, LOST, {"packets": 900})]),
        # A policy that counts nothing explains drops by netfilter only.
        ("BPF drops", None, [(PACKETS, LOST | {"reason": "XDP"}, {"packets": 40}), (FIREWALL, POLICY, {})]),
        ("firewall drops", "firewall may drop others",
         [(PACKETS, LOST | {"reason": "NETFILTER_DROP"}, {"packets": 40}), (FIREWALL, POLICY, {})]),
        # What a rule drops of those that scan this host says nothing of connects to the same port elsewhere.
        ("connects unanswered", None,
         [(SOCKETS, SYN | {"direction": "outbound"}, {}), (FIREWALL, RULE, {"packets": 30})]),
        ("connects unanswered", None,
         [(SOCKETS, SYN | {"direction": "outbound?"}, {}), (FIREWALL, RULE, {"packets": 30})]),
        # A counter of packets that the drops show is part of them, unless it counts another protocol.
        ("datagrams dropped", "losing packets",
         [(PACKETS, LOST | {"protocol": "udp"}, {"packets": 900}),
          (COUNTERS, COUNTER | {"name": "UdpRcvbufErrors"}, {"packets": 905})]),
        ("connections dropped", None,
         [(PACKETS, LOST | {"protocol": "udp"}, {"packets": 900}),
          (COUNTERS, COUNTER | {"name": "TcpExtListenOverflows"}, {"packets": 905})]),
        # Without descriptors a process does not accept, though its queue has room; another one does.
        ("never accepts", "no descriptors left",
         [(SOCKETS, UNHEARD, {}), (SOCKETS, PROXY, {}), (SOCKETS, USED_UP | {"pid": 9}, {})]),
        ("never accepts", None, [(SOCKETS, UNHEARD, {}), (SOCKETS, PROXY, {}), (SOCKETS, USED_UP | {"pid": 8}, {})]),
    ],
)  # fmt: skip
def test_causes(kind: str, cause: str | None, changes: list[Changed]) -> None:
    """A finding is the cause of another one only if both are about the same place."""
    tables = {table.name: table for table, _, _ in changes}
    rows = {name: [(row, row | new) for of, row, new in changes if of.name == name] for name in tables}
    each = (
        (table, [row for row, _ in rows[name]], [row for _, row in rows[name]])
        for name, table in tables.items()
    )
    assert cause_of(after(6, *each), kind) == cause


@pytest.mark.parametrize(
    ("address", "cause"), [("203.0.113.50", None), ("198.51.100.9", "waiting for a service")]
)
@pytest.mark.parametrize("kind", ["long waits", "slow responses"])
def test_two_services_of_other_hosts(address: str, cause: str | None, kind: str) -> None:
    """One that does not answer is not why another one is slow, though both have the same port."""
    silent = SERVED | {"side": "used", "process": "billing", "pid": 20, "port": 443, "usual_p99": 800_000,
                       "address": "198.51.100.9"}  # fmt: skip
    other = silent | {"id": 2, "process": "mailer", "pid": 30, "address": address}
    other |= {"long waits": {"usual_p99": None}, "slow responses": {"speed": "slower", "recent_p99": SECOND}}[
        kind
    ]
    rows = after(
        6,
        (SERVICES, [silent, other], [silent, other | {"responses": 60 if kind == "slow responses" else 50}]),
    )
    (cause_id,) = {row["cause"] for row in rows if (row["kind"], row["process"]) == (kind, "mailer")}
    assert next((row["kind"] for row in rows if row["id"] == cause_id), None) == cause


@pytest.mark.parametrize(
    ("direction", "target", "peer", "cause"),
    [
        # Of clients here to the server here, and to one elsewhere.
        ("outbound", "10.0.3.7", "10.1.2.3", "resets connections"),
        ("outbound", "198.51.100.9", "10.1.2.3", None),
        # The server here is reset by a client here, or one elsewhere.
        ("inbound", "10.0.3.7", "10.0.3.7", "resets connections"),
        ("inbound", "198.51.100.9", "10.1.2.3", None),
    ],
)
def test_who_resets_connections(direction: str, target: str, peer: str, cause: str | None) -> None:
    """A process that does so only explains that those with itself end."""
    resets = {"id": 1, "direction": "inbound", "reason": "reset by us", "process": "nginx", "port": 443, "netns": 1,
              "remote_address": "10.1.2.3", "reset": 0, "failures": 0}  # fmt: skip
    broken = resets | {"id": 2, "direction": "outbound", "reason": "reset by peer", "process": "curl",
                       "remote_address": target}  # fmt: skip
    if direction == "inbound":
        resets |= {"direction": "outbound", "process": "curl", "remote_address": target}
        broken |= {"direction": "inbound", "process": "nginx", "remote_address": peer}
    before = [resets, broken]
    now = [row | {"reset": 9, "failures": 9} for row in before]
    here = LISTENER | {"local_address": "10.0.3.7", "local_port": 443, "netns": 1}
    rows = after(3, (SOCKETS, [here], [here]), (FAILURES, before, now))
    assert cause_of(rows, "connections reset") == cause


@pytest.mark.parametrize(
    ("reason", "kind", "cause"),
    [("CPU_BACKLOG", "backlog full", "backlog drops"), ("FULL_RING", "losing packets", None)],
)
def test_packets_that_a_cpu_drops(reason: str, kind: str, cause: str | None) -> None:
    """They are part of the finding about the CPU, and so are the drops of their interface; other packets are not."""
    busy = {"cpu": 1, "softirq_ns": 0, "elsewhere_ns": 0, "processed": 0, "squeezed": 0, "dropped": 0}
    lost = {"id": 1, "reason": reason, "severity": "trouble", "meaning": "full", "netns": 1, "interface": "eth0",
            "packets": 0}  # fmt: skip
    counts = {"id": 1, "interface": "eth0", "netns": 1, "drops_received": 0}
    rows = after(
        1,
        (CPUS, [busy], [busy | {"dropped": 900}]),
        (PACKETS, [lost], [lost | {"packets": 900}]),
        (INTERFACES, [counts], [counts | {"drops_received": 900}]),
    )
    assert cause_of(rows, kind) == cause
    assert cause_of(rows, "interface drops") == (cause or kind)


def test_a_peer_that_receives_full_segments_of_another_connection() -> None:
    """The path does not lose them because of their size."""
    hangs: Row = {**BEFORE, "id": 1, "state": "ESTABLISHED", "lost": 1, "cwnd": 1, "send_queue": 9_000,
                  "bytes_in_flight": 1_448, "peer_window": 60_000}  # fmt: skip
    works = {**BEFORE, "id": 2, "state": "ESTABLISHED", "local_port": 50_001}
    worked = works | {"bytes_acked": 9_500, "bytes_sent": 9_100, "data_packets_sent": 7}
    worked |= {"packets_received": 9}
    rows = after(6, (SOCKETS, [hangs, works], [hangs | {"busy_us": 1_000_000}, worked]))
    assert [row["kind"] for row in rows if row["cause"] is None] == ["peer gone"]


@pytest.mark.parametrize(
    ("reason", "seconds", "kinds"),
    [
        ("QDISC_OVERLIMIT", 1, []),
        ("QDISC_OVERLIMIT", 5, ["qdisc full"]),
        ("FQ_FLOW_LIMIT", 1, []),
        ("FQ_FLOW_LIMIT", 5, ["qdisc full"]),
        ("CAKE_FLOOD", 5, ["qdisc full"]),
        ("QDISC_CONGESTED", 5, []),
        ("FULL_RING", 1, ["losing packets"]),
    ],
)
def test_a_queue_drops_to_slow_tcp_down(reason: str, seconds: int, kinds: list[str]) -> None:
    """For a moment that is how TCP finds its rate, and it is all that CoDel does."""
    dropped = {
        "id": 1,
        "reason": reason,
        "severity": "trouble",
        "interface": "eth0",
        "netns": 1,
        "packets": 0,
    }
    rows = after(seconds, (PACKETS, [dropped], [dropped | {"packets": 90}]))
    assert [row["kind"] for row in rows] == kinds


@pytest.mark.parametrize(("pause", "is_deleted"), [(0, False), (8, False), (12, False), (1, True), (8, True)])
def test_a_firewall_drops_packets_of_an_open_connection(pause: int, is_deleted: bool) -> None:
    """They are sent again ever more rarely, and the rule, which stands for the others, counts no more than that. It is
    as severe as what it causes. Once it is deleted, or its namespace has gone, whose number another one may get, it
    explains nothing."""
    hangs: Row = {**BEFORE, "id": 1, "state": "ESTABLISHED", "lost": 1, "cwnd": 1, "send_queue": 9_000, "netns": 9,
                  "remote_port": 443, "bytes_in_flight": 1_448, "peer_window": 60_000}  # fmt: skip
    works = {**BEFORE, "id": 2, "state": "ESTABLISHED", "netns": 9, "packets_received": 0}
    stuck = (
        CONNECTIONS,
        make_frame([hangs | {"busy_us": 1_000_000}, works | {"packets_received": 9}], [hangs, works]),
    )
    readings = Readings()
    for second in range(8 + pause):
        rules = [] if is_deleted and second >= 8 else [RULE | {"packets": int(second < 8)}]
        rule = make_frame(rules, [RULE], table=FIREWALL, lens="findings")
        rows = readings.add(stuck, (FINDINGS_LENS, rule))
    explained_s = 2 if is_deleted else KEPT_S
    expected = "firewall rule drops" if pause < explained_s else "path MTU black hole"
    (first,) = (row for row in rows if row["cause"] is None)
    assert (first["kind"], first["severity"], first["unseen"]) == (expected, "problem", 0)
    assert "packets_per_s>0" not in first["filter"]  # it would show nothing in the pause


@pytest.mark.parametrize(("netns", "kind"), [(9, "firewall rule drops"), (8, "peer gone")])
@pytest.mark.parametrize("address", ["10.0.0.9", "127.0.0.1"])
def test_a_firewall_of_another_namespace(address: str, netns: int, kind: str) -> None:
    """Its rule for the same port drops nothing of a connection to an address that is in another one."""
    hangs: Row = {**BEFORE, "id": 1, "state": "ESTABLISHED", "send_queue": 9_000, "bytes_in_flight": 1_448,
                  "netns": 7, "peer_window": 60_000, "last_received_ms": 9_000, "direction": "outbound",
                  "remote_address": address, "remote_port": 443, "busy_us": 0}  # fmt: skip
    there = {**BEFORE, "id": 2, "state": "LISTEN", "netns": 9, "local_port": 22, "local_address": address}
    if address == "127.0.0.1":
        hangs["netns"] = 9  # each namespace has its own
    rule = RULE | {"netns": netns}
    rows = after(
        4,
        (SOCKETS, [hangs, there], [hangs | {"busy_us": 1_000_000}, there]),
        (FIREWALL, [rule], [rule | {"packets": 3}]),
    )
    assert [row["kind"] for row in rows if row["cause"] is None] == [kind]


def test_a_firewall_drops_packets_that_are_sent_again_ever_more_rarely() -> None:
    """Its rule explains the connection in between, however long that takes; not any more once the connection has sent
    something that the rule has not counted."""
    was = {**BEFORE, "id": 1, "state": "ESTABLISHED", "lost": 1, "cwnd": 1, "send_queue": 9_000, "netns": 9,
           "remote_port": 443, "bytes_in_flight": 1_448, "peer_window": 60_000, "last_received_ms": 0}  # fmt: skip
    dropped = {1, 2, 4, 7, 14, 27, 53}
    readings, sent, found = Readings(), 0, {}
    for second in range(1, 120):
        sent = second if second in dropped or second == 104 else sent
        now = was | {
            "busy_us": 1_000_000,
            "last_received_ms": second * 1000,
            "last_sent_ms": (second - sent) * 1000,
        }
        rule = make_frame(
            [RULE | {"packets": int(second in dropped)}], [RULE], table=FIREWALL, lens="findings"
        )
        rows = readings.add((CONNECTIONS, make_frame([now], [was])), (FINDINGS_LENS, rule))
        found[second] = {row["kind"] for row in rows if row["cause"] is None}
    assert [found[second] for second in range(4, 104)] == [{"firewall rule drops"}] * 100
    assert found[119] == {"peer gone"}


CALLER: Row = {**BEFORE, "id": 8, "state": "SYN_SENT", "netns": 1, "remote_port": 443, "remote_address": "10.0.3.7",
               "local_port": 50_000, "lost": 1, "direction": "outbound"}  # fmt: skip
UNACCEPTED: Row = {**WAITING, "id": 8, "netns": 1, "local_port": 443, "local_address": "10.0.3.7"}


@pytest.mark.parametrize(
    ("waits", "kind", "explained_s"),
    [(CALLER, "connects unanswered", 20), (UNACCEPTED, "never accepts", 11)],
)
def test_a_listener_accepts_again(waits: Row, kind: str, explained_s: int) -> None:
    """Its clients, whose SYNs it dropped, send them again only after a while, and have no trouble of their own. What it
    still does not accept has."""
    full = LISTENER | {"id": 7, "local_port": 443, "local_address": "10.0.3.7", "netns": 1}
    readings, causes = Readings(), []
    for second in range(20):
        rows = readings.sockets([full | {"accept_queue": 11 if second < 10 else 1}, waits], [full, waits])
        causes.append(cause_of(rows, kind))
    assert causes == ["accept queue full"] * explained_s + [None] * (20 - explained_s)


def test_a_dns_server_answers_again() -> None:
    """The queries that it did not answer still wait, for as long as the program waits for them."""
    silent = DNS | {"waiting": 2, "oldest": 2 * SECOND}
    query: Row = {"id": 9, "protocol": "udp", "remote_port": 53, "remote_address": "10.0.0.53", "process": "rspamd",
                  "pid": 9, "netns": 1, "local_port": 50_000, "local_address": "10.0.3.7", "messages_sent": 1,
                  "messages_received": 0}  # fmt: skip
    readings, causes = Readings(), []
    for second in range(16):
        now = silent if second < 10 else DNS | {"responses": 9}
        waits = make_frame([query], [query])
        rows = readings.add(
            (SERVICES_LENS, make_frame([now], [DNS], table=SERVICES, lens="services")), (CONNECTIONS, waits)
        )
        causes += [cause_of(rows, "DNS unanswered")] if second else []
    assert causes == ["DNS silent"] * 15


@pytest.mark.parametrize(
    ("onward", "kind"),
    [
        ({}, "send queue stuck"),
        ({"peer_window": 9, "bytes_in_flight": 1}, "peer gone"),
        # It does not wait for one of its clients.
        ({"direction": "inbound", "local_port": 443, "remote_port": 52_114}, None),
        # That began long after.
        ({"late": True}, None),
    ],
)
def test_a_relay_that_cannot_send_on(onward: Row, kind: str | None) -> None:
    """It reads nothing meanwhile, as nettop sees when it begins, too: where that went is the cause."""
    is_late = onward.get("late", False)
    reads_not = UNREAD | {"id": 1, "direction": "inbound"}
    sends: Row = {**BEFORE, "id": 2, "state": "ESTABLISHED", "direction": "outbound?", "local_port": 50_000,
                  "remote_address": "203.0.113.7", "remote_port": 7000, "send_queue": 2, **onward}  # fmt: skip
    stuck = sends | {"busy_us": 1_000_000}
    readings = Readings()
    for second in range(8):
        now = sends if is_late and second < 4 else stuck
        rows = readings.sockets([reads_not, now], [reads_not, sends])
    assert cause_of(rows, "data unread") == kind
    if kind is not None:
        assert (
            next(row for row in rows if row["kind"] == kind)["lasted"] >= 40 * SECOND
        )  # as old as its effect


# --- over time ----------------------------------------------------------------------------------------------------


def test_since_does_not_move_while_the_host_is_suspended() -> None:
    """CLOCK_MONOTONIC stops, the wall clock does not."""
    frame = make_frame([{**LISTENER, "accept_queue": 11}])
    readings = Readings()
    (first,) = readings.add((CONNECTIONS, frame))
    rows = readings.tracker.update([(CONNECTIONS, frame)], TAKEN_NS + 2 * SECOND, WALL_NS + 8 * 3600 * SECOND)
    assert rows.array["since"].tolist() == [WALL_NS + SECOND]
    assert first["severity"] == Severity.PROBLEM.value


def test_evidence_in_another_table_is_of_the_same_namespace() -> None:
    """Its rows are those that the finding is about."""
    overflow = {"name": "TcpExtListenOverflows", "netns": 4, "namespace": "web", "packets": 5}
    (row,) = after(1, (COUNTERS, [overflow], [overflow | {"packets": 6}]))
    assert (row["view"], row["filter"]) == ("connections", "netns=4 and state=LISTEN accept_queue>0")
    assert find_table(row["view"])[1] is SOCKETS


@pytest.mark.parametrize(("process", "pid", "expected"), [("ledgerd", 7, ["CLOSE_WAIT"]), (None, None, [])])
def test_only_a_process_leaves_connections_open(
    process: str | None, pid: int | None, expected: list[str]
) -> None:
    """Clients that give up before they are accepted leave connections without a process, which nobody can close."""
    left: Row = {**BEFORE, "state": "CLOSE_WAIT", "process": process, "pid": pid, "last_sent_ms": 0}
    rows = [left | {"id": number, "local_port": 7000} for number in range(120)]
    assert kinds(found(rows, rows)) == expected


def test_a_connection_that_loses_more_than_the_others() -> None:
    """On a lossy path, some are not acknowledged for seconds, each time others: the loss is the cause."""
    before = [BEFORE | {"id": n, "local_port": 40_000 + n, "remote_port": 7000, "remote_address": "10.0.0.2",
                        "state": "ESTABLISHED", "last_received_ms": 3000, "peer_window": 9, "bytes_in_flight": 500}
              for n in range(21)]  # fmt: skip
    now = [row | {"data_packets_sent": 5, "retransmits": 1, "bytes_acked": 900} for row in before[:20]]
    stuck = before[20] | {"send_queue": 2000, "busy_us": 1_000_000, "retransmits": 1}
    rows = after(5, (SOCKETS, before, [*now, stuck]))
    assert {"peer gone", "losing segments"} <= {row["kind"] for row in rows}
    assert [row["kind"] for row in rows if row["cause"] is None] == ["losing segments"]


def served(port: int, process: str, **values: object) -> Row:
    """Return a service that used to answer, and has stopped."""
    pid = sum(process.encode())
    return {
        **SERVED,
        "id": port,
        "port": port,
        "process": process,
        "pid": pid,
        "usual_p99": 800_000,
        **values,
    }


def used(port: int, process: str, **values: object) -> Row:
    """Return the same service as a process that uses it sees it."""
    return served(port, process, id=port + 1000, side="used", address="127.0.0.1", **values)


SLOWER: Row = {"speed": "slower", "recent_p99": 320_000_000, "usual_p99": 8_000_000, "waiting": 0}


@pytest.mark.parametrize(
    ("kind", "values", "responses"), [("stuck service", {}, 50), ("slow service", SLOWER, 60)]
)
def test_the_last_service_of_a_chain_is_the_cause(kind: str, values: Row, responses: int) -> None:
    """A proxy that waits for its backend is part of it; a service that waits for nobody is not."""
    before = [served(8000, "frontd", **values), used(8000, "browser", **values), used(8001, "frontd", **values),
              served(8001, "backd", **values), served(8002, "otherd", **values)]  # fmt: skip
    rows = after(8, (SERVICES, before, [row | {"responses": responses} for row in before]))
    alone = [row["process"] for row in rows if row["cause"] is None]
    assert alone == ["backd", "otherd"]
    assert all(
        "frontd" in row["explains"] for row in rows if (row["kind"], row["process"]) == (kind, "backd")
    )


def test_a_service_that_accepts_nothing_while_it_waits() -> None:
    """What it waits for is the cause."""
    pid = served(8000, "frontd")["pid"]
    full = LISTENER | {"process": "frontd", "pid": pid, "accept_queue": 11, "local_port": 8000, "netns": 1}
    services = [served(8000, "frontd"), used(8001, "frontd"), served(8001, "backd")]
    rows = after(3, (SOCKETS, [full], [full]), (SERVICES, services, services))
    assert [(row["kind"], row["process"]) for row in rows if row["cause"] is None] == [
        ("stuck service", "backd")
    ]


@pytest.mark.parametrize(("cgroup", "alone"), [("/web", {"backd"}), ("/other", {"frontd", "backd"})])
def test_the_workers_of_a_server(cgroup: str, alone: set[str]) -> None:
    """One of them does not answer because it waits for a service; the one that is named may be another. Another server
    of the same name is another matter."""
    services = [served(8000, "frontd", cgroup="/web"), used(8001, "frontd", cgroup=cgroup) | {"pid": 77},
                served(8001, "backd", cgroup="/db")]  # fmt: skip
    rows = after(3, (SERVICES, services, services))
    assert {row["process"] for row in rows if row["cause"] is None} == alone


def test_services_that_wait_for_each_other() -> None:
    """One of them is shown, not none."""
    services = [served(8000, "a"), used(8001, "a"), served(8001, "b"), used(8000, "b")]
    rows = after(3, (SERVICES, services, services))
    assert len([row for row in rows if row["cause"] is None and row["kind"] == "stuck service"]) == 1


def test_a_wait_that_began_later_is_no_cause() -> None:
    """The service had stopped to answer before."""
    services = [served(8000, "frontd"), used(8001, "frontd", stalled=2 * SECOND)]
    rows = after(3, (SERVICES, services, services))
    assert {row["kind"] for row in rows if row["cause"] is None} == {"stuck service", "waiting for a service"}
