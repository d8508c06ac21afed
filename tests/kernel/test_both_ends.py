# SPDX-License-Identifier: Apache-2.0
"""A connection seen from both ends: each part of its time is found, and ends are joined across address translation."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import pytest

from nettop.probes.connections.probe import Connections
from nettop.query.both_ends import both_ends, other_key
from nettop.query.units import TIMES
from nettop.snapshots.services import CONNECTIONS
from nettop.snapshots.snapshot import Frame, Snapshot

from .fault_outside import ACK, SYN, parsed
from .lab import Lab, Namespace, Worker, until
from .services import REQUEST, Host, Watched, accept_each, connect_each, receive_each, send_each
from .slow_path import ADDRESSES, SlowPath, answer_late, ask_again, finish
from .test_fast_open import WITHOUT_COOKIES, listen_fast_open, send_with_syn
from .traffic import Memory, accept, arrived, cookie, cookies, exchange, listen, ready, shut

pytestmark = pytest.mark.kernel

MS = 1_000_000
NAME = 0
"""The connection's name in the memory of a worker."""


class BothLenses:
    """The connections and the services lens, read together."""

    def __init__(self) -> None:
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with self._exits as exits:
            self.connections = Connections()
            exits.callback(self.connections.close)
            self.connections.start()
            self.services = exits.enter_context(Watched())
            if self.services.status.mechanism is None:
                pytest.skip(f"no mechanism: {self.services.status.why}")
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def read(self) -> tuple[Snapshot, Snapshot]:
        """Return a reading of each lens."""
        return self.connections.read(time.monotonic_ns()), self.services.read()

    def responses(self, key: int) -> int:
        """Return the responses on the connection whose socket has this key."""
        rows = self.services.read().tables[CONNECTIONS.name].array
        return int(rows["responses"][rows["id"] == key].sum())

    def facts(self, key: int, before: tuple[Snapshot, Snapshot] | None = None) -> dict[str, str]:
        """Return what the details show of a connection, now or since an earlier reading."""
        connections, services = map(Frame, self.read(), before or (None, None))
        return both_ends(connections, services, key)

    def other_keys(self, keys: Iterable[int]) -> list[int | None]:
        """Return the socket at the other end of each of these."""
        connections, services = map(Frame, self.read())
        return [other_key(connections, services, key) for key in keys]

    def sequences(self) -> dict[int, tuple[int, int]]:
        """Return the initial sequence numbers of each connection's ends, by key."""
        rows = self.services.read().tables[CONNECTIONS.name].array
        names = ("id", "local_isn", "remote_isn")
        return {
            key: (mine, theirs)
            for key, mine, theirs in zip(*(rows[name].tolist() for name in names), strict=True)
        }


@pytest.fixture
def lenses() -> Iterator[BothLenses]:
    """Yield both lenses."""
    with BothLenses() as both:
        yield both


def durations(text: str) -> list[float]:
    """Return the durations in a text, in ns."""
    words = re.findall(r"([\d.]+) (ns|µs|ms|s)\b", text)
    return [float(number) * 1e9 / TIMES[unit.replace("µ", "u")] for number, unit in words]


DELAYS_S = {"client": 0.02, "path": 0.005, "queue": 0.008, "service": 0.012}
"""What each part takes unless it is the large one; the path each way."""
ANSWERS = 40
TUN = "/dev/net/tun"


def measured(lenses: BothLenses, path: SlowPath, ends: tuple[Worker, Worker]) -> tuple[Any, Any]:
    """Return the parts of the time, as the details show them and as the programs measured them."""
    client, server = ends
    key = client.call(cookie, NAME)
    until(lambda: lenses.responses(key) > 1, "the first responses")
    before, first = lenses.read(), lenses.responses(key)
    until(lambda: lenses.responses(key) >= first + ANSWERS, "responses", 60)
    facts = lenses.facts(key, before)
    taken = client.call(finish) | server.call(finish) | path.forwarder.call(finish)
    taken["path"] = taken.pop("there") + taken.pop("back")
    whole, queue, service = durations(facts["Server"])
    assert whole == pytest.approx(queue + service, rel=0.02)
    shown = {"queue": queue, "service": service}
    for name, title in (("response", "Request"), ("path", "Path"), ("client", "Client")):
        (shown[name],) = durations(facts[title])
    return shown, taken


@pytest.mark.skipif(not os.path.exists(TUN), reason=f"needs {TUN}")
@pytest.mark.parametrize(
    ("large", "version"),
    [({"client": 0.1}, 4), ({"path": 0.03}, 6), ({"queue": 0.06}, 4), ({"service": 0.06}, 6)],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else f"IPv{value}",
)
def test_each_part_of_the_time(lenses: BothLenses, lab: Lab, large: dict[str, float], version: int) -> None:
    """Client, path, queue and service each take what the programs measured, within 5 % or 1 ms."""
    delays = DELAYS_S | large
    path = SlowPath(lab, delays["path"])
    client, server = ends = lab.worker(path.near, "client"), lab.worker(path.far, "server")
    connect(client, server, ADDRESSES[version][1])
    server.call(answer_late, NAME, delays["queue"], delays["service"])
    client.call(ask_again, NAME, delays["client"])
    shown, taken = measured(lenses, path, ends)
    assert shown.keys() == taken.keys()
    for name, expected in taken.items():
        assert shown[name] == pytest.approx(expected, rel=0.05, abs=MS), (name, shown, taken)


def connect(client: Worker, server: Worker, address: str) -> int:
    """Open connection NAME from the client to the server; return the port."""
    port = int(server.call(listen, "listener", address))
    client.call(connect_each, address, port, 1)
    server.call(accept_each, 1)
    return port


SO_RCVBUFFORCE = 33
MANY, OUTSIDE_PORT, PORT = 200, 7100, 7200
ROUTER, SERVER = "10.76.1.2", "10.76.2.1"
_CHAIN = "table ip nat {{ chain {0} {{ type nat hook {0} priority 0; {1}; }}; }}"
TO_SERVER = _CHAIN.format("prerouting", f"tcp dport {OUTSIDE_PORT} dnat to {SERVER}:{PORT}")
FROM_ROUTER = _CHAIN.format("postrouting", 'oifname "to2" masquerade')
NUMBER = struct.Struct("=I")
Handshakes = dict[int, tuple[int, int]]
"""Initial sequence numbers of the client and of the server, by the client's port."""


def translate(router: Namespace, *tables: str) -> None:
    """Have the router translate addresses; skip the test if the kernel cannot."""
    for table in tables:
        try:
            router.run("nft", table)
        except RuntimeError as error:
            pytest.skip(f"this kernel has no address translation: {error}")


def capture(memory: Memory, device: str) -> None:
    """Begin to capture the IPv4 packets of a device."""
    held = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    held.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
    held.bind((device, 0))
    memory["capture"] = held


def handshakes(memory: Memory, count: int) -> Handshakes:
    """Return the captured handshakes, once there are `count` of them."""
    asked: dict[int, int] = {}
    answered: dict[int, int] = {}
    while len(answered) < count:
        ready([memory["capture"]])
        segment = parsed(memory["capture"].recv(65536))
        if segment is None or not segment.flags & SYN:
            continue
        if segment.flags & ACK:
            answered[segment.target[1]] = segment.sequence
        else:
            asked[segment.source[1]] = segment.sequence
    return {port: (asked[port], isn) for port, isn in answered.items()}


def send_numbers(memory: Memory, count: int) -> None:
    """Send on each connection its number."""
    for name in range(count):
        memory[name].sendall(NUMBER.pack(name))


def order_by_number(memory: Memory, count: int) -> None:
    """Name each accepted connection by the number that arrives on it."""
    accepted = [memory.pop(name) for name in range(count)]
    for held in accepted:
        memory[NUMBER.unpack(held.recv(NUMBER.size, socket.MSG_WAITALL))[0]] = held
    assert len(accepted) == count == sum(name in memory for name in range(count))


def peers_ports(memory: Memory, count: int) -> list[int]:
    """Return the port of each connection's peer."""
    return [int(memory[name].getpeername()[1]) for name in range(count)]


def local_ports(memory: Memory, count: int) -> list[int]:
    """Return the local port of each connection."""
    return [int(memory[name].getsockname()[1]) for name in range(count)]


def expected_sequences(shaken: Handshakes, ports: list[int], *, connected: bool) -> list[tuple[int, int]]:
    """Return the initial sequence numbers of this end and its peer: of the end that connected its own, all others plus
    one."""
    pairs = [shaken[port] for port in ports]
    if connected:
        return [(mine, (theirs + 1) % 2**32) for mine, theirs in pairs]
    return [((mine + 1) % 2**32, (theirs + 1) % 2**32) for theirs, mine in pairs]


@dataclass
class Translated:
    """A client and a server, on each side of a router that translates addresses, and `count` connections."""

    client: Worker
    server: Worker
    count: int
    keys: tuple[list[int], list[int]] = ([], [])

    @classmethod
    def connected(cls, lab: Lab, tables: tuple[str, ...], count: int) -> Self:
        """Return the connections, each with a request that is its number."""
        near, router, far = lab.routed_pair()
        translate(router, *tables)
        made = cls(lab.worker(near, "client"), lab.worker(far, "server"), count)
        for worker in (made.client, made.server):
            worker.call(capture, "wire")
        made.server.call(listen, "listener", "0.0.0.0", PORT)
        target = (ROUTER, OUTSIDE_PORT) if TO_SERVER in tables else (SERVER, PORT)
        made.client.call(connect_each, *target, count)
        made.server.call(accept_each, count)
        made.client.call(send_numbers, count)
        made.server.call(order_by_number, count)
        names = list(range(count))
        made.keys = [list(worker.call(cookies, names).values()) for worker in (made.client, made.server)]
        return made

    def expected(self) -> dict[int, tuple[int, int]]:
        """Return the initial sequence numbers of each end by its socket's key, from the packets."""
        of_client = self.client.call(handshakes, self.count), self.client.call(local_ports, self.count)
        of_server = self.server.call(handshakes, self.count), self.server.call(peers_ports, self.count)
        near, far = (
            expected_sequences(*of_end, connected=at == 0) for at, of_end in enumerate((of_client, of_server))
        )
        return dict(zip((*self.keys[0], *self.keys[1]), (*near, *far), strict=True))

    def check(self, lenses: BothLenses, expected: dict[int, tuple[int, int]]) -> None:
        """Assert that each end's sequence numbers are those of the packets, and that each knows its other end."""
        actual = lenses.sequences()
        assert {key: actual.get(key) for key in expected} == expected
        near, far = self.keys
        assert lenses.other_keys(near) == far
        assert lenses.other_keys(far) == near


@pytest.mark.parametrize(
    "tables", [(TO_SERVER,), (FROM_ROUTER,), (TO_SERVER, FROM_ROUTER)], ids=["destination", "source", "both"]
)
def test_translated_addresses(lenses: BothLenses, lab: Lab, tables: tuple[str, ...]) -> None:
    """Behind address translation each of 200 connections is joined with its own other end: when it has been
    established, after data both ways, and after one of the ends has closed."""
    made = Translated.connected(lab, tables, MANY)
    expected = made.expected()
    made.check(lenses, expected)
    names, sizes = list(range(MANY)), {name: 1 + 97 * name for name in range(MANY)}
    made.client.start(exchange, sizes, sizes)
    made.server.call(exchange, sizes, sizes)
    made.client.result()
    made.check(lenses, expected)
    made.client.call(shut, names[::2])
    made.server.call(shut, names[1::2])
    made.server.call(ended, names[::2])
    made.client.call(ended, names[1::2])
    made.check(lenses, expected)


def ended(memory: Memory, names: list[int]) -> None:
    """Read the end of these connections."""
    for name in names:
        ready([memory[name]])
        assert memory[name].recv(1) == b""


def test_fast_open(lenses: BothLenses, lab: Lab) -> None:
    """Sequence numbers begin with the SYN also if it carries data."""
    near, far = lab.pair()
    client, server = lab.worker(near.namespace, "client"), lab.worker(far.namespace, "server")
    for end, worker in ((near, client), (far, server)):
        end.namespace.sysctl("net.ipv4.tcp_fastopen", WITHOUT_COOKIES)
        worker.call(capture, end.device)
    port = server.call(listen_fast_open, far.v4)
    client.call(send_with_syn, (far.v4, port), 101)
    server.call(accept, "listener", 0)
    made = Translated(client, server, 1, ([client.call(cookie, 0)], [server.call(cookie, 0)]))
    expected = made.expected()
    made.check(lenses, expected)
    client.start(exchange, {0: 70_001}, {0: 90_001})
    server.call(exchange, {0: 90_001}, {0: 101 + 70_001})
    client.result()
    made.check(lenses, expected)


@pytest.mark.parametrize("was_read", [False, True])
def test_who_waits_for_whom(lenses: BothLenses, lab: Lab, was_read: bool) -> None:
    """The details say, at both ends, who waits for whom, for how long, and whether the request was read."""
    host = Host(lab)
    connect(host.client, host.server, "127.0.0.1")
    keys = host.client.call(cookie, NAME), host.server.call(cookie, NAME)
    assert all("Waits" not in lenses.facts(key) for key in keys)
    began = time.monotonic_ns()
    host.client.call(send_each, [NAME], REQUEST)
    sent = time.monotonic_ns()
    host.server.call(receive_each if was_read else arrived_each, [NAME], REQUEST)
    read = "has read" if was_read else "has not read"
    end = f"for server {host.server.pid}, which {read} the request"
    for key in keys:
        least = time.monotonic_ns() - sent
        waits = lenses.facts(key)["Waits"]
        assert waits.startswith(f"client {host.client.pid} has waited ")
        assert waits.endswith(end)
        (waited,) = durations(waits)
        assert least * 0.99 <= waited <= (time.monotonic_ns() - began) * 1.01
    host.server.call(send_each, [NAME], REQUEST)
    host.client.call(receive_each, [NAME], REQUEST)
    assert all("Waits" not in lenses.facts(key) for key in keys)


def arrived_each(memory: Memory, names: list[int], size: int) -> None:
    """Wait until so many bytes are unread on each of these connections."""
    arrived(memory, dict.fromkeys(names, size))
