# SPDX-License-Identifier: Apache-2.0
"""The lens counts interface traffic exactly, by protocol, service and flow, and passes it unchanged."""

import contextlib
import hashlib
import os
import socket
import struct
import time
from typing import Any

import numpy as np
import pytest

from nettop.kernel import bpf_syscall as bpf
from nettop.probes.bandwidth.probe import Bandwidth
from nettop.probes.bandwidth.programs import INTERFACES_MAX
from nettop.snapshots.bandwidth import COUNTERS_MODE, EVICTED, MODES, TCX_MODE
from nettop.snapshots.snapshot import Snapshot
from tests.options import source_options

from . import bpf_objects, oracle, traffic
from .conftest import version_numbers
from .lab import End, Lab, Namespace, NotInTimeError, until
from .test_events import decoded
from .traffic import Memory, send_datagrams

pytestmark = pytest.mark.kernel

AGGREGATES = pytest.mark.since("6.6", "generic XDP sees neither aggregates nor tags as they are on the wire")
MOVED = ("packets_received", "bytes_received", "packets_sent", "bytes_sent")
ETHERNET, VLAN = 14, 4
SYN_OPTIONS = 8
"""What a SYN has beyond the timestamps of all segments."""
HAS_TCX = version_numbers(os.uname().release) >= (6, 6)
EXPERIMENTAL = 0x88B5
Row = dict[str, Any]


# --- the probe, in a worker inside a namespace ------------------------------------------------------------------


def attach(memory: Memory, options: dict[str, Any], flows_max: int) -> list[tuple[str, str | None]]:
    """Attach the probe; return its hooks and their mechanisms."""
    memory["probe"] = Bandwidth(flows_max=flows_max)
    memory["probe"].configure(source_options(["flows"], **options))
    memory["probe"].start()
    snapshot: Snapshot = memory["probe"].read(time.monotonic_ns())
    return [(hook.hook, hook.mechanism) for hook in snapshot.hooks]


def read(memory: Memory) -> dict[str, Any]:
    """Return a reading: plain rows by table, the counts of evicted flows and of recently removed interfaces, and those
    of all removed interfaces by table."""
    snapshot: Snapshot = memory["probe"].read(time.monotonic_ns())
    tables = {name: decoded(rows) for name, rows in snapshot.tables.items()}
    ended = snapshot.ended.get("flows")
    evicted = decoded(ended.total)[0] if ended else {}
    ends = {name: of for name, of in snapshot.ended.items() if name != "flows"}
    return {
        **tables,
        "evicted": evicted,
        "removed": {name: decoded(of.rows[-1]) for name, of in ends.items()},
        "removed in all": {name: decoded(of.total)[0] for name, of in ends.items()},
        "counts": dict(snapshot.counts),
        "lost": dict(snapshot.lost),
    }


class Watched:
    """A probe at the first end of a pair of devices, and the counts of devices and probe since it was attached."""

    def __init__(
        self, lab: Lab, *, flows_max: int = 1 << 14, with_foreign_xdp: bool = False, **options: object
    ) -> None:
        self.near, self.far = lab.pair()
        for end in (self.near, self.far):
            end.namespace.sysctl("net.ipv4.tcp_sack", 0)  # all segments of a connection have the same options
        if with_foreign_xdp:
            lab.dropper(self.near).nothing()
        self.worker = lab.worker(self.near.namespace)
        self.hooks: dict[str, str | None] = dict(self.worker.call(attach, options, flows_max))

        self._before = self.uncounted(self.near.namespace, self.near.device)

    def uncounted(self, namespace: Namespace, device: str) -> dict[str, int]:
        """Return a device's counters from before the probe counted it, at a moment without traffic."""

        def difference() -> dict[str, int] | None:
            counts, rows = device_counts(namespace, device), interface_rows(self.read(), namespace, device)
            if not rows or counts != device_counts(namespace, device):
                return None
            return {name: counts[name] - rows[0][name] for name in MOVED}

        before = until(difference, "a moment without packets")
        assert before is not None
        return before

    def read(self) -> dict[str, Any]:
        """Return a reading."""
        return dict(self.worker.call(read))

    def settled(self) -> tuple[dict[str, Any], dict[str, int]]:
        """Return a reading, and the device's counts at the same moment, one without traffic."""

        readings: list[tuple[dict[str, Any], dict[str, int]]] = []

        def is_quiet() -> bool:
            before = self.since()
            readings.append((self.read(), before))
            return before == self.since()

        until(is_quiet, "a moment without packets")
        return readings[-1]

    def interface(self) -> Row:
        """Return the row of the near device."""
        return self.row_of(self.read())

    def row_of(self, reading: dict[str, Any]) -> Row:
        """Return the near device's row of a reading."""
        (row,) = interface_rows(reading, self.near.namespace, self.near.device)
        return row

    def since(self) -> dict[str, int]:
        """Return the near device's counts since the probe was attached."""
        now = device_counts(self.near.namespace, self.near.device)
        return {name: now[name] - self._before[name] for name in MOVED}


def device_counts(namespace: Namespace, device: str) -> dict[str, int]:
    """Return a device's own counters, by the table's names."""
    stats = namespace.link(device)["stats64"]
    return {
        f"{unit}_{name}": stats[direction][unit]
        for direction, name in (("rx", "received"), ("tx", "sent"))
        for unit in ("packets", "bytes")
    }


def interface_rows(reading: dict[str, Any], namespace: Namespace, device: str) -> list[Row]:
    """Return the row of a device, or none yet; devices in other namespaces may have the same name."""
    key = device, namespace.inode
    return [row for row in reading["interfaces"] if (row["interface"], row["netns"]) == key]


def moved(row: Row) -> dict[str, int]:
    """Return a row's counts."""
    return {name: row[name] for name in MOVED}


def summed(rows: list[Row]) -> dict[str, int]:
    """Sum the counts of rows."""
    return {name: sum(row[name] for row in rows) for name in MOVED}


# --- traffic --------------------------------------------------------------------------------------------------


def listen_udp(memory: Memory, address: tuple[str, int]) -> None:
    """Open a socket, so that the kernel sends no port-unreachable messages."""
    memory["large"] = socket.socket(traffic.V6 if ":" in address[0] else traffic.V4, socket.SOCK_DGRAM)
    memory["large"].bind(address)


def send_frames(memory: Memory, device: str, frames: list[bytes]) -> None:
    """Send frames unchanged."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device, 0))
        for frame in frames:
            sender.send(frame)


def collect_frames(memory: Memory, device: str) -> None:
    """Start capturing frames at a device."""
    memory["frames"] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    memory["frames"].bind((device, 0))


def collected(memory: Memory, marks: int) -> list[bytes]:
    """Return the captured frames, once `count` of the test's own are among them."""
    frames: list[bytes] = []
    while sum(b"nettop" in frame for frame in frames) < marks:
        traffic.ready([memory["frames"]])
        frames.append(memory["frames"].recv(65536))
    return [frame for frame in frames if b"nettop" in frame]


def send_file(memory: Memory, to: tuple[str, int], size: int) -> tuple[str, dict[str, int]]:
    """Send incompressible bytes over TCP; return their hash, and the socket's counts."""
    content = np.random.default_rng(size).bytes(size)
    with socket.create_connection(to) as sender:
        sender.sendall(content)
        sender.shutdown(socket.SHUT_WR)
        sender.recv(1)
        info = oracle.tcp_info(sender)
    return hashlib.sha256(content).hexdigest(), info


def receive_file(memory: Memory, listener: str) -> str:
    """Return the hash of the bytes from one connection."""
    accepted, _ = memory[listener].accept()
    digest = hashlib.sha256()
    with accepted:
        while piece := accepted.recv(1 << 16):
            digest.update(piece)
    return digest.hexdigest()


def ethernet(kind: int, payload: bytes, to: str = "02:00:00:00:00:02", tags: tuple[int, ...] = ()) -> bytes:
    """Return a frame with these VLAN tags (their ethertypes), which the kernel does not change."""
    frame = bytes.fromhex(to.replace(":", "")) + bytes.fromhex("020000000001")
    for tag in tags:
        frame += struct.pack(">HH", tag, 7)
    return frame + struct.pack(">H", kind) + payload


def ipv4(protocol: int, payload: bytes, offset: int = 0, more: bool = False, number: int = 1) -> bytes:
    """Return the IPv4 packet of datagram `number`, with a wrong checksum so that nobody answers."""
    length = 20 + len(payload)
    fragment = offset // 8 | (0x2000 if more else 0)
    addresses = socket.inet_aton("10.78.0.1") + socket.inet_aton("10.78.0.2")
    return struct.pack(">BBHHHBBH", 0x45, 0, length, number, fragment, 64, protocol, 0) + addresses + payload


def ipv6(following: int, payload: bytes) -> bytes:
    """Return an IPv6 packet."""
    addresses = socket.inet_pton(traffic.V6, "fd78::1") + socket.inet_pton(traffic.V6, "fd78::2")
    return struct.pack(">IHBB", 6 << 28, len(payload), following, 64) + addresses + payload


def ports(source: int, destination: int, rest: bytes = b"nettop") -> bytes:
    """Return the start of a UDP or TCP header, as much as counting needs, and a mark."""
    return struct.pack(">HH", source, destination) + bytes(16) + rest


# --- tests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, pytest.param(6, marks=pytest.mark.core)])
def test_datagrams_both_directions(lab: Lab, version: int) -> None:
    """Packets, bytes, protocol, service and flow are exact for datagrams of one size in each direction."""
    watched = Watched(lab)
    near, far = (end.v6 if version == 6 else end.v4 for end in (watched.near, watched.far))
    here, there = lab.worker(watched.near.namespace), lab.worker(watched.far.namespace)
    to_here, to_there = here.call(traffic.udp, "in", near), there.call(traffic.udp, "in", far)
    there.call(send_datagrams, (near, to_here), 499, 211)
    here.call(send_datagrams, (far, to_there), 997, 101)
    header = ETHERNET + (40 if version == 6 else 20) + 8
    of_udp = {
        "packets_received": 499,
        "bytes_received": 499 * (211 + header),
        "packets_sent": 997,
        "bytes_sent": 997 * (101 + header),
    }

    def udp() -> Row:
        rows = watched.read()["protocols"]
        return next(
            row for row in rows if (row["interface"], row["protocol"]) == (watched.near.device, "udp")
        )

    until(lambda: udp()["packets_received"] >= 499, "all have arrived")
    result, since = watched.settled()
    near_rows = {
        name: [row for row in result[name] if row["interface"] == watched.near.device]
        for name in ("protocols", "services", "flows")
    }
    assert moved(udp()) == of_udp
    assert summed(near_rows["protocols"]) == moved(watched.row_of(result)) == since
    assert summed(near_rows["services"]) == summed(near_rows["flows"]) == since
    assert {row["remote_port"]: row["packets_sent"] for row in near_rows["flows"]}[to_there] == 997
    assert {row["local_port"]: row["packets_received"] for row in near_rows["flows"]}[to_here] == 499
    assert not any(result["lost"].values())


FRAMES = {
    "short": ethernet(EXPERIMENTAL, b"nettop"),
    "v4 UDP": ethernet(0x0800, ipv4(17, ports(5353, 53))),
    "v4 first fragment": ethernet(0x0800, ipv4(17, ports(5353, 53), more=True)),
    "v4 later fragment": ethernet(0x0800, ipv4(17, b"nettop" * 4, offset=64, number=2)),
    "v6 extensions": ethernet(
        0x86DD, ipv6(0, bytes([60, 0]) + bytes(6) + bytes([17, 0]) + bytes(6) + ports(9, 443))
    ),
    "v6 fragment": ethernet(0x86DD, ipv6(44, bytes([17, 0]) + struct.pack(">HI", 8, 1) + b"nettop" * 4)),
    "VLAN": ethernet(0x0800, ipv4(17, ports(9, 443)), tags=(0x8100,)),
    "QinQ": ethernet(0x0800, ipv4(17, ports(9, 443)), tags=(0x88A8, 0x8100)),
    "broadcast": ethernet(EXPERIMENTAL, b"nettop", to="ff:ff:ff:ff:ff:ff"),
    "multicast": ethernet(EXPERIMENTAL, b"nettop", to="01:00:5e:00:00:01"),
    "truncated v4": ethernet(0x0800, ipv4(6, b"")[:15] + b"nettop"),
    "wrong length": ethernet(0x0800, b"\x4f" + ipv4(17, ports(9, 443))[1:]),
    "sctp": ethernet(0x0800, ipv4(132, ports(9, 443))),
    "GRE": ethernet(0x0800, ipv4(47, bytes(4) + b"nettop")),
    "only an ethertype": ethernet(0x0800, b"nettop"),
}


@pytest.mark.core
def test_any_frame(lab: Lab) -> None:
    """Frames of every kind, including malformed ones, are counted with their bytes, and arrive unchanged."""
    watched = Watched(lab)
    for end in (watched.far, watched.near):  # whose stack would send packets between these
        end.namespace.sysctl(f"net.ipv6.conf.{end.device}.disable_ipv6", 1)
    check_frames(lab, watched, "received", watched.far, watched.near)
    check_frames(lab, watched, "sent", watched.near, watched.far)


def check_frames(lab: Lab, watched: Watched, direction: str, source: End, target: End) -> None:
    """Send the frames in one direction."""
    sender, receiver = lab.worker(source.namespace), lab.worker(target.namespace)
    receiver.call(collect_frames, target.device)
    before = watched.interface()
    sender.call(send_frames, source.device, list(FRAMES.values()))
    arrived = receiver.call(collected, len(FRAMES))
    assert sorted(arrived) == sorted(map(_untagged, FRAMES.values()))
    after = watched.interface()
    counted = after[f"packets_{direction}"] - before[f"packets_{direction}"]
    assert counted == len(FRAMES)
    assert after[f"bytes_{direction}"] - before[f"bytes_{direction}"] == sum(map(len, FRAMES.values()))
    assert (after["broadcast"] - before["broadcast"], after["multicast"] - before["multicast"]) == (1, 1)
    services = {
        row["service"]: row[f"packets_{direction}"]
        for row in watched.read()["services"]
        if row["interface"] == watched.near.device
    }
    assert (services["DNS"], services["QUIC"]) == (2, 3)


def _untagged(frame: bytes) -> bytes:
    """Return the frame without its outer VLAN tag, which the kernel removes before a packet socket sees it."""
    return frame[:12] + frame[16:] if frame[12:14] in (b"\x81\x00", b"\x88\xa8") else frame


TUNNELS = {
    "vlan": (("link", "veth{side}", "name", "inner", "type", "vlan", "id", "7"), VLAN),
    "qinq": (("link", "veth{side}", "name", "inner", "type", "vlan", "proto", "802.1ad", "id", "7"), VLAN),
    "gre": (("name", "inner", "type", "gre", "local", "10.78.0.{side}", "remote", "10.78.0.{far}"), 20 + 4),
    "ipip": (("name", "inner", "type", "ipip", "local", "10.78.0.{side}", "remote", "10.78.0.{far}"), 20),
    "sit": (("name", "inner", "type", "sit", "local", "10.78.0.{side}", "remote", "10.78.0.{far}"), 20),
    "ip6tnl": (
        ("name", "inner", "type", "ip6tnl", "mode", "any", "encaplimit", "none",
         "local", "fd78::{side}", "remote", "fd78::{far}"),
        40,
    ),
    "vxlan": (
        ("name", "inner", "type", "vxlan", "id", "5", "dev", "veth{side}", "remote", "10.78.0.{far}",
         "dstport", "4789"),
        20 + 8 + 8 + ETHERNET,
    ),
    "geneve": (
        ("name", "inner", "type", "geneve", "id", "5", "remote", "10.78.0.{far}"),
        20 + 8 + 8 + ETHERNET,
    ),
}  # fmt: skip
"""How each device is made, and what it adds to each packet on the device below."""
OF_IPV6 = ("sit",)
"""Tunnels that carry nothing but IPv6."""
OVER_IPV6 = ("ip6tnl",)
"""Tunnels whose outer headers are IPv6."""


def add_tunnel(watched: "Watched", kind: str) -> tuple[str, str]:
    """Create a device `inner` at both ends; return their addresses. Skip if the kernel lacks the kind.

    IPv6 is off where the tunnel does not need it: the kernel would send packets of its own at any time.
    """
    words, _ = TUNNELS[kind]
    addresses = ("fd99::1", "fd99::2") if kind in OF_IPV6 else ("10.99.0.1", "10.99.0.2")
    for end, address in zip((watched.near, watched.far), addresses, strict=True):
        made = [word.format(side=end.side, far=3 - end.side) for word in words]
        try:
            end.namespace.ip("link", "add", *made)
        except RuntimeError as error:
            pytest.skip(f"this kernel has no {kind} device: {error}")
        for device, needs_ipv6 in (("inner", kind in OF_IPV6), (end.device, kind in OVER_IPV6)):
            end.namespace.sysctl(f"net.ipv6.conf.{device}.disable_ipv6", int(not needs_ipv6))
        length, *options = ("64", "nodad") if kind in OF_IPV6 else ("24",)
        end.namespace.ip("addr", "add", f"{address}/{length}", "dev", "inner", *options)
        end.namespace.ip("link", "set", "inner", "up")
    return addresses


@AGGREGATES
@pytest.mark.core
@pytest.mark.parametrize("kind", TUNNELS)
def test_aggregates_in_tunnels(lab: Lab, kind: str) -> None:
    """A file over TCP each way, in aggregates: the tunnel's traffic passes the device below with the outer headers of
    each packet on the wire."""
    watched = Watched(lab)
    near, far = add_tunnel(watched, kind)
    for end in (watched.near, watched.far):
        end.namespace.sysctl(f"net.ipv6.conf.{end.device}.router_solicitations", 0)
        for device in (end.device, "inner"):
            end.namespace.ip("link", "set", device, "gso_max_segs", "64")
    namespace = watched.near.namespace
    has_ethernet = "link/ether" in namespace.ip("link", "show", "inner")
    added = TUNNELS[kind][1] + (0 if has_ethernet else ETHERNET)

    def rows() -> tuple[Row, Row]:
        reading = watched.read()
        (inner,) = interface_rows(reading, namespace, "inner")
        return inner, watched.row_of(reading)

    here, there = lab.worker(namespace), lab.worker(watched.far.namespace)
    before, kernel_before = rows(), watched.since()

    def grown() -> tuple[dict[str, int], dict[str, int]]:
        inner, outer = (
            {name: now[name] - then[name] for name in MOVED} for now, then in zip(rows(), before, strict=True)
        )
        return inner, outer

    def settled() -> tuple[dict[str, int], dict[str, int]] | None:
        inner, outer = grown()
        is_same = all(inner[f"packets_{way}"] == outer[f"packets_{way}"] for way in ("sent", "received"))
        return (inner, outer) if is_same else None

    def pass_both() -> tuple[dict[str, int], dict[str, int]] | None:
        """Send the files; return what both devices counted, or None if the device below sent something of its own, such
        as multicast reports of a new device. It may also do so later, so nothing is read again."""
        nonlocal before, kernel_before
        before, kernel_before = rows(), watched.since()
        for sender, receiver, address in ((here, there, far), (there, here, near)):
            port = receiver.call(traffic.listen, "files", address)
            receiver.start(receive_file, "files")
            digest, _ = sender.call(send_file, (address, port), 3_000_017)
            assert receiver.result() == digest
        with contextlib.suppress(NotInTimeError):
            return until(settled, "nothing is on its way", 3)
        return None

    inner, outer = until(pass_both, "what passes the tunnel passes the device below")
    for way in ("sent", "received"):
        packets = inner[f"packets_{way}"]
        assert packets > 2_000
        assert outer[f"bytes_{way}"] == inner[f"bytes_{way}"] + packets * added
    aggregates = watched.since()["packets_sent"] - kernel_before["packets_sent"]
    assert aggregates < outer["packets_sent"] / 2


@pytest.mark.parametrize("segments", [1, pytest.param(64, marks=[pytest.mark.core, AGGREGATES])])
def test_a_file(lab: Lab, segments: int) -> None:
    """A file over TCP, in single packets and in aggregates, arrives unchanged; every packet on the wire is counted,
    matching the sockets' segment counts."""
    watched = Watched(lab)
    for end in (watched.near, watched.far):
        end.namespace.ip("link", "set", end.device, "gso_max_segs", str(segments))
    here, there = lab.worker(watched.near.namespace), lab.worker(watched.far.namespace)
    port = there.call(traffic.listen, "files", watched.far.v4)
    size = 3_000_017
    before = watched.interface()
    there.start(receive_file, "files")
    digest, info = here.call(send_file, (watched.far.v4, port), size)
    assert there.result() == digest
    flow = next(row for row in watched.read()["flows"] if row["remote_port"] == port)
    assert flow["packets_sent"] >= info["segs_out"]
    assert flow["packets_sent"] - info["segs_out"] <= 2  # acknowledgements after its segments were read
    headers = flow["packets_sent"] * (ETHERNET + 20 + 32) + SYN_OPTIONS
    assert flow["bytes_sent"] - headers == size + info["bytes_retrans"]
    assert flow["packets_received"] - info["segs_in"] <= 2
    assert set("SFA") <= set(flow["tcp_flags"])
    after = watched.interface()
    assert after["packets_sent"] - before["packets_sent"] >= flow["packets_sent"]


def ports_of_flows(reading: dict[str, Any], watched: Watched) -> dict[tuple[str, Any, Any], tuple[int, int]]:
    """Return the packets and bytes sent of the near device's flows, by protocol, local and remote port."""
    return {
        (row["protocol"], row["local_port"], row["remote_port"]): (row["packets_sent"], row["bytes_sent"])
        for row in reading["flows"]
        if row["interface"] == watched.near.device and row["packets_sent"]
    }


@pytest.mark.parametrize("version", [4, pytest.param(6, marks=pytest.mark.core)])
def test_datagrams_larger_than_packets(lab: Lab, version: int) -> None:
    """All fragments of a datagram count for its flow and service, though only the first has ports."""
    count, size = 37, 8_000
    watched = Watched(lab, service="big=9999/udp")
    for end in (watched.near, watched.far):
        end.namespace.sysctl(f"net.ipv6.conf.{end.device}.router_solicitations", 0)
    near, far = (end.v6 if version == 6 else end.v4 for end in (watched.near, watched.far))
    here, there = lab.worker(watched.near.namespace), lab.worker(watched.far.namespace)
    there.call(listen_udp, (far, 9999))
    here.call(listen_udp, (near, 9999))
    here.call(send_datagrams, (far, 9999), count, size)
    there.call(send_datagrams, (near, 9999), count, size)
    header, most = (40 + 8, 1448) if version == 6 else (20, 1480)
    fragments = -(-(8 + size) // most)
    expected = count * fragments, count * (8 + size + fragments * (ETHERNET + header))

    def of_service() -> list[tuple[int, int]]:
        rows = [row for row in watched.read()["services"] if row["service"] == "big"]
        ways = ("sent", "received")
        return [(row[f"packets_{way}"], row[f"bytes_{way}"]) for row in rows for way in ways]

    until(lambda: of_service() == [expected] * 2, "all fragments are counted")
    (flow,) = (ports for ports in ports_of_flows(watched.read(), watched).items() if ports[0][0] == "udp")
    assert flow == (("udp", flow[0][1], 9999), expected)
    rows = [row for row in watched.read()["flows"] if row["protocol"] == "udp" and row["packets_received"]]
    assert [(row["local_port"], row["packets_received"], row["bytes_received"]) for row in rows] == [
        (9999, *expected)
    ]


def test_fragments_without_their_first(lab: Lab) -> None:
    """Fragments without their first have unknown ports, not port 0 and not another datagram's ports."""
    watched = Watched(lab)
    first = ethernet(0x0800, ipv4(17, ports(5353, 53), more=True, number=7))
    later = [
        ethernet(0x0800, ipv4(17, b"nettop" * 4, offset=64, number=number)) for number in (7, 8, 7 + 256)
    ]
    lab.worker(watched.near.namespace).call(send_frames, watched.near.device, [first, *later])
    until(lambda: watched.since()["packets_sent"] >= 4, "all are sent")
    flows = ports_of_flows(watched.read(), watched)
    assert flows["udp", 5353, 53] == (2, len(first) + len(later[0]))
    assert flows["udp", None, None] == (2, 2 * len(later[0]))


FLOWS, FLOWS_MAX = 200_000, 1 << 16


def send_flows(memory: Memory, device: str, count: int) -> None:
    """Send a datagram of each of `count` flows."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device, 0))
        for number in range(count):
            sender.send(ethernet(0x0800, ipv4(17, ports(1 + number % 60_000, 9 + number // 60_000))))


def test_more_flows_than_there_is_room_for(lab: Lab) -> None:
    """Flows, evicted flows, and the interface's counters are three independent counts that agree exactly."""
    watched = Watched(lab, flows_max=FLOWS_MAX)
    here, there = lab.worker(watched.near.namespace), lab.worker(watched.far.namespace)
    here.call(send_flows, watched.near.device, FLOWS)
    there.call(send_flows, watched.far.device, FLOWS_MAX)
    until(lambda: watched.since()["packets_received"] >= FLOWS_MAX, "all have arrived")
    result, since = watched.settled()
    both = {name: summed(result["flows"])[name] + result["evicted"][name] for name in MOVED}
    assert both == since == moved(watched.row_of(result))
    assert len(result["flows"]) <= FLOWS_MAX
    assert result["counts"]["flows_evicted"] >= FLOWS - FLOWS_MAX
    assert result["evicted"]["interface"] == EVICTED


def test_a_foreign_program_is_left_alone(lab: Lab) -> None:
    """An interface keeps a foreign XDP program; nettop counts it by TCX, and says so."""
    watched = Watched(lab, with_foreign_xdp=True, xdp="generic")
    before = watched.interface()
    assert before["mode"] == ("after XDP" if HAS_TCX else "counters")
    assert "xdp" in watched.near.namespace.ip("link", "show", watched.near.device)
    port = lab.worker(watched.near.namespace).call(traffic.udp, "in", watched.near.v4)
    lab.worker(watched.far.namespace).call(send_datagrams, (watched.near.v4, port), 101, 61)
    until(
        lambda: watched.interface()["packets_received"] - before["packets_received"] >= 101, "all are counted"
    )


SCHED_CLS, XDP = 3, 6
"""Types of programs."""
XDP_DROP, TC_DROP = 1, 2
FOREIGN = {"XDP": (XDP, XDP_DROP, bpf.XDP, 0), "TCX": (SCHED_CLS, TC_DROP, bpf.TCX_INGRESS, bpf.TCX_FIRST)}


def drop_all(memory: Memory, device: str, kind: str) -> None:
    """Attach a program, before all others, that drops every packet received by a device."""
    program_type, verdict, attach_type, flags = FOREIGN[kind]
    instructions = struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0)
    program = bpf.call("bpf_prog_load", program_type, b"drop_all", b"GPL", instructions, 2, None)
    memory["link"] = bpf.link(program, attach_type, socket.if_nametoindex(device), flags)


def quiet_pair(namespace: Namespace, device: str, peer: str, *words: str) -> None:
    """Create a pair of devices in a namespace that send nothing of their own."""
    namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    namespace.ip("link", "add", device, *words, "up", "type", "veth", "peer", "name", peer)
    namespace.ip("link", "set", peer, "up")


@pytest.mark.since("6.6", "TCX")
def test_a_program_that_drops_first_hides_nothing(lab: Lab) -> None:
    """nettop still counts packets that an earlier TCX program drops."""
    namespace = lab.namespace()
    quiet_pair(namespace, "near", "far")
    worker, probe = lab.worker(namespace), lab.worker(namespace)
    worker.call(drop_all, "near", "TCX")
    probe.call(attach, {}, 1 << 12)
    worker.call(send_frames, "far", [FRAMES["v4 UDP"]] * 101)

    def is_counted() -> bool:
        (row,) = interface_rows(probe.call(read), namespace, "near")
        return row["packets_received"] == 101 and row["mode"] == MODES[TCX_MODE]

    until(is_counted, "all are counted")


@pytest.mark.since("6.6", "TCX")
@pytest.mark.parametrize("kind", FOREIGN)
def test_packets_taken_by_a_later_program_are_named(lab: Lab, kind: str) -> None:
    """Packets dropped before nettop sees them, in any way, count as unseen and as a loss."""
    namespace = lab.namespace()
    quiet_pair(namespace, "near", "far")
    worker, probe = lab.worker(namespace), lab.worker(namespace)
    probe.call(attach, {}, 1 << 12)

    def near() -> Row:
        (row,) = interface_rows(probe.call(read), namespace, "near")
        return row

    until(lambda: near()["unseen"] == 0, "the counters were compared")
    worker.call(send_frames, "far", [FRAMES["v4 UDP"]] * 53)
    until(lambda: near()["packets_received"] == 53, "nothing is dropped yet")
    worker.call(drop_all, "near", kind)
    worker.call(send_frames, "far", [FRAMES["v4 UDP"]] * 101)
    until(lambda: near()["unseen"] == 101, "the difference is named")
    assert near()["mode"] == ("after XDP" if kind == "XDP" else "TCX")
    assert probe.call(read)["lost"]["unseen"] == 101
    assert near()["packets_received"] == 53


@pytest.mark.parametrize("xdp", ["native", "off"])
def test_an_interface_made_again(lab: Lab, xdp: str) -> None:
    """An interface that is deleted and recreated, with the same name and index, is a new one: it begins at 0 and is
    attached.

    The old one's last packets stay in each table and in the sum. The kernel itself forgets the last packets that a veth
    received.
    """
    namespace = lab.namespace()
    quiet_pair(namespace, "near", "far", "index", "77")
    probe, worker = lab.worker(namespace), lab.worker(namespace)
    probe.call(attach, {"xdp": xdp}, 1 << 12)

    def near(reading: dict[str, Any]) -> Row:
        (row,) = interface_rows(reading, namespace, "near")
        return row

    old, frame, received = near(probe.call(read)), FRAMES["v4 UDP"], 0 if xdp == "off" else 211
    worker.call(send_frames, "near", [frame] * 307)
    worker.call(send_frames, "far", [frame] * received)
    namespace.ip("link", "del", "near")
    quiet_pair(namespace, "near", "far", "index", "77")
    reading = probe.call(read)
    new, (removed,) = near(reading), interface_rows(reading["removed"], namespace, "near")
    last = {
        "packets_received": received,
        "bytes_received": received * len(frame),
        "packets_sent": 307,
        "bytes_sent": 307 * len(frame),
    }
    assert moved(removed) == last
    assert removed["id"] == old["id"] != new["id"]
    assert (new["mode"], moved(new)) == (old["mode"], dict.fromkeys(MOVED, 0))
    for table, label in (("protocols", "udp"), ("services", "DNS")):
        rows = [row for row in reading["removed"][table] if row["interface"] == "near"]
        assert [row[table.removesuffix("s")] for row in rows] == [label] * (xdp != "off")
        assert all(moved(row) == last for row in rows)
    worker.call(send_frames, "near", [frame] * 41)
    worker.call(send_frames, "far", [frame] * 43)

    def is_counted() -> bool:
        row = near(probe.call(read))
        return (row["packets_sent"], row["packets_received"]) == (41, 43)

    until(is_counted, "the new one is counted")
    # The other end has sent what this one received.
    assert probe.call(read)["removed in all"]["interfaces"]["packets_sent"] == received + 307
    assert not any(probe.call(read)["lost"].values())


COMING, AT_ONCE = 60, 20


def test_interfaces_come_and_go(lab: Lab) -> None:
    """New interfaces are counted; removed ones leave nothing in the process, and their bytes stay in the totals."""
    watched = Watched(lab)
    namespace = watched.near.namespace
    port = lab.worker(namespace).call(traffic.udp, "in", watched.near.v4)
    lab.worker(watched.far.namespace).call(send_datagrams, (watched.near.v4, port), 101, 61)
    until(lambda: watched.read()["counts"].get("packets_received", 0) >= 101, "all are counted")

    def held() -> tuple[int, set[bpf_objects.Object]]:
        pid = watched.worker.pid
        return len(os.listdir(f"/proc/{pid}/fd")), bpf_objects.held(pid)

    before = held()
    for first in range(0, COMING, AT_ONCE):
        names = {f"new{number}" for number in range(first, first + AT_ONCE)}
        for name in names:
            namespace.ip("link", "add", name, "up", "type", "veth", "peer", "name", f"{name}p")
        counted = {row["interface"] for row in watched.read()["interfaces"] if row["mode"] != "counters"}
        assert names <= counted
        for name in names:
            namespace.ip("link", "del", name)
        assert not names & {row["interface"] for row in watched.read()["interfaces"]}
    assert held() == before
    moved_before = watched.read()["counts"]
    sender, frame = lab.worker(watched.far.namespace), FRAMES["v4 UDP"]
    sender.call(send_frames, watched.far.device, [frame] * 211)
    namespace.ip("link", "del", watched.near.device)
    after = watched.read()
    assert namespace.inode not in {row["netns"] for row in after["interfaces"]}
    grown = {name: after["counts"][name] - moved_before[name] for name in MOVED}
    assert grown["packets_received"] >= 211
    assert grown["bytes_received"] >= 211 * len(frame)
    assert all(count >= 0 for count in grown.values())


def test_more_interfaces_than_places(lab: Lab) -> None:
    """An interface without a place has its own counters, and is a loss; counting continues when it gets a place."""
    namespace = lab.namespace()
    # Those with the lowest indices come first.
    pairs = INTERFACES_MAX // 2 + 5
    namespace.ip_batch(
        *(f"link add other{number} up type veth peer name peer{number}" for number in range(pairs)),
        *(f"link set peer{number} up" for number in range(pairs)),
    )
    quiet_pair(namespace, "near", "far")
    probe, worker = lab.worker(namespace), lab.worker(namespace)
    probe.call(attach, {}, 1 << 12)
    frame = FRAMES["v4 UDP"]

    def near(count: int) -> dict[str, Any] | None:
        reading: dict[str, Any] = probe.call(read)
        (row,) = interface_rows(reading, namespace, "near")
        return reading if row["packets_sent"] == row["packets_received"] == count else None

    def sent(count: int, in_all: int) -> tuple[str, int]:
        for device in ("near", "far"):
            worker.call(send_frames, device, [frame] * count)
        reading = until(lambda: near(in_all), "all are counted")
        assert reading is not None
        (row,) = interface_rows(reading, namespace, "near")
        return row["mode"], reading["lost"]["uncounted"]

    (mode, lost), (_, lost_later) = sent(101, 101), sent(53, 154)
    assert mode == MODES[COUNTERS_MODE] and 0 < lost < lost_later
    namespace.ip_batch(*(f"link del other{number}" for number in range(20)))
    assert near(154)
    mode, lost = sent(31, 185)
    assert mode != MODES[COUNTERS_MODE]
    assert sent(11, 196) == (mode, lost)


def test_other_namespaces(lab: Lab) -> None:
    """Interfaces of other namespaces have their own counters, and the name of their namespace."""
    watched = Watched(lab)
    here = lab.worker(watched.near.namespace)
    there = lab.worker(watched.far.namespace)
    port = there.call(traffic.udp, "in", watched.far.v4)
    before = watched.read()
    here.call(send_datagrams, (watched.far.v4, port), 101, 61)
    after = watched.read()
    rows = [
        next(row for row in reading["interfaces"] if row["netns"] == watched.far.namespace.inode)
        for reading in (before, after)
    ]
    assert rows[1]["mode"] == "counters"
    assert rows[1]["packets_received"] - rows[0]["packets_received"] >= 101
