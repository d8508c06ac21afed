# SPDX-License-Identifier: Apache-2.0
"""Example data for the drops lens: a host that drops packets for a handful of reasons."""

from __future__ import annotations

from nettop.snapshots.drops import COUNTERS, PACKETS, REASONS
from nettop.snapshots.snapshot import Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_hooks, make_rows

_SECOND_NS = 1_000_000_000

_PACKETS: tuple[tuple[str, str, str, str, str, int, int], ...] = (
    ("SOCKET_RCVBUFF", "__udp_enqueue_schedule_skb", "IPv4", "udp", "eth0", 41_902, 312),
    ("NETFILTER_DROP", "nf_hook_slow", "IPv4", "tcp", "eth0", 18_337, 87),
    ("TCP_LISTEN_OVERFLOW", "tcp_v4_syn_recv_sock", "IPv4", "tcp", "eth0", 2_114, 19),
    ("NO_SOCKET", "tcp_v4_rcv", "IPv4", "tcp", "eth0", 9_870, 11),
    ("NO_SOCKET", "__udp4_lib_rcv", "IPv4", "udp", "docker0", 655, 4),
    ("QDISC_OVERLIMIT", "pfifo_fast_enqueue", "IPv4", "tcp", "eth1", 804, 3),
    ("TCP_OLD_DATA", "tcp_data_queue", "IPv4", "tcp", "eth0", 1_210, 2),
    ("IP_RPFILTER", "ip_rcv_finish_core", "IPv4", "icmp", "eth1", 96, 1),
    ("OTHERHOST", "ip_rcv_core", "IPv4", "tcp", "eth0", 30_551, 0),
    ("NEIGH_FAILED", "arp_error_report", "IPv4", "tcp", "eth1", 12, 0),
    ("UNHANDLED_PROTO", "__netif_receive_skb_core", "LLDP", "", "eth1", 7, 0),
)
"""Reason, place, family, protocol, interface, drops so far, drops per second."""

_OWNERS = {
    "SOCKET_RCVBUFF": (53, "unbound", 812),
    "TCP_LISTEN_OVERFLOW": (443, "nginx", 2210),
    "TCP_OLD_DATA": (443, "nginx", 2210),
}
"""By reason the port, its process and PID."""

_VIA = {
    "packets": "tp_btf/kfree_skb",
    "reasons": "tp_btf/kfree_skb",
    "places": "/proc/kallsyms",
    "counters": "/proc/net + rtnetlink",
}


def example_steps(seconds: int = 3) -> list[Snapshot]:
    """Return snapshots a second apart."""
    return [_snapshot(second) for second in range(seconds)]


def _snapshot(second: int) -> Snapshot:
    nobody = (None, None, None)
    rows: list[Row] = [
        {
            "id": number,
            "reason": reason,
            "meaning": REASONS[reason].meaning if reason in REASONS else None,
            "severity": REASONS[reason].severity if reason in REASONS else None,
            "place": place,
            "family": family,
            "protocol": protocol or None,
            "interface": interface,
            "netns": 4_026_531_840,
            "namespace": "own",
            **dict(zip(("port", "process", "pid"), _OWNERS.get(reason, nobody), strict=True)),
            "packets": before + per_second * second,
            "bytes": (before + per_second * second) * 240,
            "last_seen": WALL_NS + (second if per_second else -90 * number) * _SECOND_NS,
        }
        for number, (reason, place, family, protocol, interface, before, per_second) in enumerate(_PACKETS, 1)
    ]
    taken_ns = TAKEN_NS + second * _SECOND_NS
    counters: list[Row] = [
        {
            "id": 1,
            "counter": "accept queue full",
            "name": "TcpExtListenOverflows",
            "packets": 2_114 + 19 * second,
        }
    ]
    counts = {
        "drops": sum(row["packets"] for row in rows),
        "listen_overflows": 2_114 + 19 * second,
        "udp_buffer_errors": 41_902 + 312 * second,
    }
    tables = {
        PACKETS.name: make_rows(rows, PACKETS, taken_ns),
        COUNTERS.name: make_rows(counters, COUNTERS, taken_ns),
    }
    return Snapshot(
        "drops",
        WALL_NS + second * _SECOND_NS,
        taken_ns + 5_000_000_000,
        tables,
        counts=counts,
        hooks=make_hooks(_VIA),
        lost={"untracked": 0, "recursion": 0},
    )
