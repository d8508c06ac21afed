# SPDX-License-Identifier: Apache-2.0
"""Example data for the bandwidth lens: a web server with two network cards, containers behind a bridge, and a VPN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nettop.snapshots.bandwidth import (
    COUNTERS_MODE,
    EVICTED,
    FLOWS,
    INTERFACES,
    KINDS,
    LENS,
    OTHER_SERVICES,
    PROTOCOL_TABLE,
    PROTOCOLS,
    SERVICE_TABLE,
    SERVICES,
)
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Ended, Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, Tables, make_hooks, make_rows

SECOND_NS = 1_000_000_000
NETNS = 4_026_531_840
GIGABIT = 125_000_000
"""Bytes per second."""
_MOVED = ("bytes_received", "bytes_sent", "packets_received", "packets_sent")
_WAVE = (100, 92, 81, 74, 70, 77, 88, 104, 121, 133, 128, 117)
"""The rate of each second, in percent of the usual one; after the last comes the first again."""


class _Interface(NamedTuple):
    """An interface, with its bytes per second and bytes per packet, received and sent."""

    name: str
    kind: str
    backing: str
    mode: str
    speed: int | None
    received: int
    sent: int
    packet_bytes: tuple[int, int]
    protocols: Mapping[str, float]
    services: Mapping[str, float]
    drops: int = 0
    """Per second."""


_WEB = {"HTTPS": 0.71, "QUIC": 0.06, "HTTP": 0.02, "DNS": 0.002, "SSH": 0.01}
_INTERFACES = (
    _Interface(
        "eth0", "ether", "uplink", "XDP native", GIGABIT, 41_200_000, 11_900_000, (1_240, 310),
        {"tcp": 0.93, "udp": 0.064, "icmp": 0.001, "icmpv6": 0.0004, "arp": 0.0002}, _WEB,
    ),
    _Interface(
        "eth1", "ether", "uplink", "XDP generic", GIGABIT, 2_750_000, 2_375_000, (880, 790),
        {"tcp": 0.98, "icmp": 0.0004, "arp": 0.0003}, {"SSH": 0.03},
    ),
    _Interface(
        "docker0", "bridge", "virtual", "TCX", None, 26_200_000, 8_100_000, (1_180, 420),
        {"tcp": 0.97, "udp": 0.02, "arp": 0.0001}, {"HTTPS": 0.62, "DNS": 0.02},
    ),
    _Interface(
        "veth9a1c2f", "veth", "virtual", "TCX", 10 * GIGABIT, 14_700_000, 5_300_000, (1_190, 400),
        {"tcp": 0.99, "udp": 0.006}, {"HTTPS": 0.97, "DNS": 0.006}, drops=3,
    ),
    _Interface(
        "vethb07e44", "veth", "virtual", "TCX", 10 * GIGABIT, 11_500_000, 2_800_000, (1_170, 460),
        {"tcp": 0.94, "udp": 0.04}, {"HTTPS": 0.18, "DNS": 0.04},
    ),
    _Interface(
        "wg0", "wireguard", "virtual", "TCX", None, 96_000, 410_000, (240, 1_120),
        {"tcp": 0.6, "udp": 0.4}, {"SSH": 0.55, "DNS": 0.01},
    ),
)  # fmt: skip


class _Flow(NamedTuple):
    """A flow's owner, and its bytes per second, received and sent."""

    interface: str
    protocol: str
    local: str
    local_port: int | None
    remote: str
    remote_port: int | None
    process: str | None
    pid: int | None
    received: int
    sent: int
    flags: str | None = None


_FLOWS = (
    _Flow("eth0", "tcp", "10.0.3.7", 443, "203.0.113.9", 52114, "nginx", 1812, 18_400_000, 410_000, "SPA"),
    _Flow("eth0", "tcp", "10.0.3.7", 443, "198.51.100.77", 40112, "nginx", 1813, 9_100_000, 2_740_000, "PA"),
    _Flow("eth0", "tcp", "2001:db8::7", 443, "2001:db8:1::24", 51022, "nginx", 1814, 4_900_000, 3_300_000, "PA"),
    _Flow("eth0", "udp", "10.0.3.7", 443, "203.0.113.20", 58820, "caddy", 2050, 2_450_000, 1_480_000),
    _Flow("eth1", "tcp", "10.0.9.7", 5432, "10.0.9.21", 40922, "postgres", 977, 1_460_000, 1_900_000, "PA"),
    _Flow("docker0", "tcp", "172.17.0.1", 40110, "172.17.0.2", 8080, "node", 2301, 14_600_000, 5_200_000, "PA"),
    _Flow("docker0", "tcp", "172.17.0.1", 55010, "172.17.0.3", 9092, "java", 2210, 11_300_000, 2_700_000, "SPA"),
    _Flow("wg0", "tcp", "10.8.0.1", 22, "10.8.0.14", 60110, "sshd", 30112, 52_000, 231_000, "PA"),
    _Flow("eth0", "udp", "2001:db8::7", 40822, "2001:db8::53", 53, "systemd-resolve", 610, 88_000, 31_000),
    _Flow("eth0", "icmp", "10.0.3.7", None, "192.0.2.44", None, None, None, 9_800, 9_800),
    _Flow("eth0", "icmpv6", "fe80::1", None, "ff02::1", None, None, None, 1_200, 0),
    _Flow("eth1", "arp", "::", None, "::", None, None, None, 60, 42),
    _Flow("eth0", "tcp", "10.0.3.7", 443, "198.51.100.90", 33004, None, None, 0, 0, "SFA"),
)  # fmt: skip

VIA = {
    "received": "XDP + TCX",
    "sent": "tp_btf/net_dev_start_xmit + net_dev_xmit",
    "flows": "XDP + TCX + tp_btf/net_dev_start_xmit",
    "interfaces": "rtnetlink",
}
DETAILS = {
    "Namespace": "own",
    "Not XDP native": "Operation not supported",
    "Last minute": "330 Mb/s in, 95.2 Mb/s out; peak 438 Mb/s in, 127 Mb/s out",
    "Since the start": "301 Mb/s in, 88.0 Mb/s out; peak 512 Mb/s in, 141 Mb/s out",
}
"""What the source says of an interface."""


def example_steps(count: int = 3, apart_s: int = 1, *, uplinks: bool = True) -> list[Snapshot]:
    """Return snapshots some seconds apart; without `uplinks` of a host that has none of its own."""
    interfaces = [interface for interface in _INTERFACES if uplinks or interface.backing == "virtual"]
    return [_snapshot(interfaces, (step + 1) * apart_s) for step in range(count)]


def _snapshot(interfaces: Sequence[_Interface], second: int) -> Snapshot:
    taken_ns = TAKEN_NS + second * SECOND_NS
    rows = [_interface_row(n, interface, second) for n, interface in enumerate(interfaces, 2)]
    services = [OTHER_SERVICES, *dict.fromkeys(name for name, _, _ in SERVICES)]
    names = {interface.name for interface in interfaces}
    flows = [_flow_row(n, flow, second) for n, flow in enumerate(_FLOWS, 1) if flow.interface in names]
    evicted: Row = {"id": 0, "interface": EVICTED, "process": EVICTED}
    evicted |= _moved(210_000, 96_000, (700, 640), second)
    texts: Tables = {}
    ended = Ended((), make_rows([evicted], FLOWS, taken_ns, texts=texts))
    tables = {
        INTERFACES.name: make_rows(rows, INTERFACES, taken_ns),
        PROTOCOL_TABLE.name: make_rows(
            _split(interfaces, PROTOCOL_TABLE, PROTOCOLS, second), PROTOCOL_TABLE, taken_ns
        ),
        SERVICE_TABLE.name: make_rows(
            _split(interfaces, SERVICE_TABLE, services, second), SERVICE_TABLE, taken_ns
        ),
        FLOWS.name: make_rows(flows, FLOWS, taken_ns, texts=texts),
    }
    uplinks = [row for row in rows if row["backing"] == "uplink"]
    return Snapshot(
        LENS.id,
        WALL_NS + second * SECOND_NS,
        taken_ns + 5 * SECOND_NS,
        tables,
        counts={name: sum(row[name] for row in uplinks) for name in _MOVED} if uplinks else {},
        hooks=make_hooks(VIA),
        lost={"uncounted": 0, "refused": 0, "recursion": 0, "namespaces": 0},
        ended={FLOWS.name: ended},
    )


def _grown(per_second: float, second: int) -> int:
    """Return the count by a second, at a rate that rises and falls."""
    return sum(int(per_second * _WAVE[n % len(_WAVE)] / 100) for n in range(second))


def _moved(received: float, sent: float, packet_bytes: tuple[int, int], second: int) -> Row:
    """Return the counters of what was received and sent at these bytes per second."""
    rates = (received, sent, received / packet_bytes[0], sent / packet_bytes[1])
    return {name: _grown(rate, second) for name, rate in zip(_MOVED, rates, strict=True)}


def _interface_row(number: int, of: _Interface, second: int) -> Row:
    return {
        "id": NETNS << 32 | number,
        "interface": of.name,
        "kind": of.kind,
        "netns": NETNS,
        "namespace": "own",
        "backing": of.backing,
        "mode": of.mode,
        "state": "up",
        "speed": of.speed,
        "duplex": None if of.speed is None else "full",
        "capacity": None if of.speed is None else of.speed * second,
        "broadcast": 2 * second,
        "multicast": 5 * second,
        "drops_received": of.drops * second,
        "drops_sent": 0,
        "errors": 0,
    } | _moved(of.received, of.sent, of.packet_bytes, second)


def _split(interfaces: Sequence[_Interface], table: Table, labels: Sequence[str], second: int) -> list[Row]:
    """Return a row for each interface and label that it has carried; `other` and `(other)` have the rest."""
    rows: list[Row] = []
    for number, of in enumerate(interfaces, 2):
        shares: Mapping[str, float] = getattr(of, table.name)
        rest = 1 - sum(shares.values())
        for n, label in enumerate(labels):
            share = shares.get(label, rest if label in ("other", OTHER_SERVICES) else 0.0)
            if not share:
                continue
            row: Row = {"id": number * KINDS + n, "interface": of.name, table.name.removesuffix("s"): label}
            rows.append(row | _moved(of.received * share, of.sent * share, of.packet_bytes, second))
    return rows


def _flow_row(number: int, of: _Flow, second: int) -> Row:
    return {
        "id": number,
        "interface": of.interface,
        "protocol": of.protocol,
        "local_address": of.local,
        "local_port": of.local_port,
        "remote_address": of.remote,
        "remote_port": of.remote_port,
        "process": of.process,
        "pid": of.pid,
        "tcp_flags": of.flags,
        "first_seen": WALL_NS - number * 7 * SECOND_NS,
        "last_seen": WALL_NS + (second if of.received else -number) * SECOND_NS,
    } | _moved(of.received, of.sent, (1_100, 400), second)


ETH0 = NETNS << 32 | 2
"""Its key."""


def without_eth0(snapshot: Snapshot) -> Snapshot:
    """Return the same host after eth0 was removed."""
    rows = snapshot.tables[INTERFACES.name]
    rest = replace(rows, array=rows.array[rows.array["id"] != ETH0])
    return replace(snapshot, tables={**snapshot.tables, INTERFACES.name: rest})


def only_counters(snapshot: Snapshot) -> Snapshot:
    """Return the same host where no interface's packets are seen."""
    rows = snapshot.tables[INTERFACES.name]
    array = rows.array.copy()
    array["mode"] = COUNTERS_MODE
    return replace(snapshot, tables={**snapshot.tables, INTERFACES.name: replace(rows, array=array)})


def with_many(snapshot: Snapshot, count: int) -> Snapshot:
    """Return the same host with `count` interfaces."""
    rows = snapshot.tables[INTERFACES.name]
    array = rows.array[np.arange(count) % len(rows)]
    array["id"] = ETH0 + np.arange(count, dtype=np.uint64)
    return replace(snapshot, tables={**snapshot.tables, INTERFACES.name: replace(rows, array=array)})
