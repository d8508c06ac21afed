# SPDX-License-Identifier: Apache-2.0
"""On a host with a container behind NAT and mixed traffic, all lenses agree."""

import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Any

import pytest

from nettop.probes.connections.probe import Connections
from nettop.snapshots.snapshot import Frame, Snapshot

from . import oracle, traffic
from .lab import End, Lab, Namespace, Worker, until
from .test_bandwidth import (
    ETHERNET,
    MOVED,
    SYN_OPTIONS,
    Row,
    Watched,
    device_counts,
    moved,
    summed,
)
from .test_events import decoded
from .traffic import Call, Memory

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not shutil.which("nft"), reason="there is no nft, for NAT"),
]

MASQUERADE = """table ip nat {
  chain out { type nat hook postrouting priority srcnat; oifname "veth1" masquerade; }
}"""
SEGMENT = ETHERNET + 20 + 32
"""What TCP over IPv4 adds to the payload of a segment."""
UP, DOWN, WEB = 3_000_017, 1_000_003, 700_001


def follow_connections(memory: Memory) -> None:
    """Attach the connections probe."""
    probe = memory["connections"] = Connections()
    probe.start()

    def is_attached() -> bool:
        list(probe.drain(time.monotonic_ns()))
        return probe._loader is None

    until(is_attached, "all hooks are attached")


def read_connections(memory: Memory) -> list[Row]:
    """Read the current sockets, and pass them to flows as well."""
    snapshot: Snapshot = memory["connections"].read(time.monotonic_ns())
    memory["probe"].join({"connections": Frame(snapshot)})
    return decoded(snapshot.tables["sockets"])


def sent_again(memory: Memory, name: str) -> int:
    """Return the bytes that a connection retransmitted."""
    return oracle.tcp_info(memory[name])["bytes_retrans"]


def add_container(lab: Lab, host: Namespace) -> Namespace:
    """Add a namespace behind a host's bridge and NAT, with IPv4 only and no snooping, so that it stays silent."""
    inside = lab.namespace()
    for namespace in (host, inside):
        namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    host.sysctl("net.ipv4.ip_forward", 1)
    single = ("gso_max_segs", "1")  # the devices' own counters are of packets then
    host.ip("link", "add", "br0", "up", *single, "type", "bridge", "mcast_snooping", "0")
    host.ip("addr", "add", "172.30.0.1/24", "dev", "br0")
    host.ip("link", "add", "port0", *single, "type", "veth", "peer", "name", "eth0", "netns", inside.name)
    host.ip("link", "set", "port0", "up", "master", "br0")
    inside.ip("addr", "add", "172.30.0.2/24", "dev", "eth0")
    inside.ip("link", "set", "eth0", "up", *single)
    inside.ip("route", "add", "default", "via", "172.30.0.1")
    nft = ["ip", "netns", "exec", host.name, "nft", "-f", "-"]
    subprocess.run(nft, input=MASQUERADE, text=True, check=True, capture_output=True)
    return inside


@dataclass(frozen=True)
class Moved:
    """Traffic: a client on the host and one in its container, their peer, and the ports of the bulk."""

    here: Worker
    inside: Worker
    there: Worker
    bulk_from: int
    bulk_to: int


def move_everything(lab: Lab, host: End, world: End, container: Namespace) -> Moved:
    """Generate bulk, and web from a container, at once."""
    here, there, inside = map(lab.worker, (host.namespace, world.namespace, container))
    ports = {
        name: there.call(traffic.listen, name, world.v4, port) for name, port in (("bulk", 0), ("web", 80))
    }
    local = {}
    for name, client in (("bulk", here), ("web", inside)):
        local[name] = client.call(traffic.connect, f"{name}-client", Call((world.v4, ports[name])))
        there.call(traffic.accept, name, f"{name}-server")
    here.start(traffic.exchange, {"bulk-client": UP}, {"bulk-client": DOWN})
    inside.start(traffic.exchange, {"web-client": 317}, {"web-client": WEB})
    there.start(
        traffic.exchange, {"bulk-server": DOWN, "web-server": WEB}, {"bulk-server": UP, "web-server": 317}
    )
    for worker in (here, inside, there):
        worker.result()
    return Moved(here, inside, there, local["bulk"], ports["bulk"])


def test_everything_agrees(lab: Lab) -> None:
    """Host totals, interfaces, protocols, services, flows and sockets agree to the packet and the byte."""
    watched = Watched(lab)
    host, world = watched.near, watched.far
    container = add_container(lab, host.namespace)
    port_before = watched.uncounted(host.namespace, "port0")
    watched.worker.call(follow_connections)
    by = move_everything(lab, host, world, container)

    def bulk_socket() -> Row:
        sockets: list[Row] = watched.worker.call(read_connections)
        ends = (host.namespace.inode, by.bulk_from)
        return next(row for row in sockets if (row["netns"], row["local_port"]) == ends)

    def at_rest() -> tuple[Row, dict[str, int], dict[str, Any], dict[str, int]] | None:
        """Return the socket, the container's port and the lens, read at moments without traffic."""
        before, port = bulk_socket(), device_counts(host.namespace, "port0")
        reading = watched.settled()
        is_quiet = moved(before) == moved(bulk_socket()) and port == device_counts(host.namespace, "port0")
        return (before, port, *reading) if is_quiet else None

    at_rest_now = until(at_rest, "a moment without packets")
    assert at_rest_now is not None
    of_socket, port_now, result, since = at_rest_now
    counted = {
        device: _one(result, "interfaces", device, netns=host.namespace.inode)
        for device in ("veth1", "br0", "port0")
    }
    for device, row in counted.items():
        for table in ("protocols", "services", "flows"):
            assert summed(_rows(result, table, device)) == moved(row), (device, table)
    assert result["counts"]["flows_evicted"] == 0
    assert {name: result["counts"][name] for name in MOVED} == moved(counted["veth1"]) == since
    assert moved(counted["port0"]) == {name: port_now[name] - port_before[name] for name in MOVED}

    uplink, bridge, port = (
        _one(result, "services", device, service="HTTP") for device in ("veth1", "br0", "port0")
    )
    assert moved(port) == moved(bridge) == _turned(uplink)
    bulk = _one(result, "flows", "veth1", remote_port=by.bulk_to)
    assert (of_socket["bytes_sent"], of_socket["bytes_received"]) == (UP, DOWN)
    again = {
        "sent": by.here.call(sent_again, "bulk-client"),
        "received": by.there.call(sent_again, "bulk-server"),
    }
    for direction, payload in (("sent", UP), ("received", DOWN)):
        packets = bulk[f"packets_{direction}"]
        assert packets == of_socket[f"packets_{direction}"]
        headers = SEGMENT * packets + SYN_OPTIONS
        assert bulk[f"bytes_{direction}"] == payload + again[direction] + headers
    assert bulk["pid"] == of_socket["pid"] == by.here.pid
    assert _one(result, "flows", "port0", local_port=80)["pid"] == by.inside.pid
    assert (
        _one(result, "flows", "veth1", remote_port=80)["pid"] != by.inside.pid
    )  # NAT has given it another address

    by.here.call(traffic.close, ["bulk-client"])
    watched.worker.call(read_connections)
    watched.worker.call(read_connections)
    assert (
        _one(watched.read(), "flows", "veth1", remote_port=by.bulk_to)["pid"] == by.here.pid
    )  # it is remembered


def _rows(result: dict[str, Any], table: str, device: str) -> list[Row]:
    return [row for row in result[table] if row["interface"] == device]


def _one(result: dict[str, Any], table: str, device: str, **values: object) -> Row:
    (row,) = (row for row in _rows(result, table, device) if row.items() >= values.items())
    return row


def _turned(row: Row) -> dict[str, int]:
    """Swap received and sent counts."""
    return {
        f"{unit}_{direction}": row[f"{unit}_{other}"]
        for unit in ("packets", "bytes")
        for direction, other in (("received", "sent"), ("sent", "received"))
    }
