# SPDX-License-Identifier: Apache-2.0
"""The paths of the self-test's traffic: over loopback, and between two private network namespaces; and datagrams sent
over them, compared with a lens's counts."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from nettop.kernel.net import devices
from nettop.process.interrupts import delay_interrupts
from nettop.selftest.process import TIMEOUT_S, CommandFailed, TrafficProcess
from nettop.selftest.result import SelfTestResult

Value = TypeVar("Value")
CLIENT, SERVER = "doctor-client", "doctor-server"
IP_VERSIONS = ("IPv4", "IPv6")
_LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}
_CLIENT_ADDRESSES = {"IPv4": "192.0.2.1", "IPv6": "2001:db8::1"}
_SERVER_ADDRESSES = {"IPv4": "192.0.2.2", "IPv6": "2001:db8::2"}
"""Addresses reserved for documentation (RFC 5737, RFC 3849); these namespaces are private."""
_PREFIXES = {"IPv4": 24, "IPv6": 64}
_DEVICE = "nettop0"
_DATAGRAMS = (997, 499)
"""Datagrams to send by IP version; primes."""
_DATAGRAM_BYTES = 101
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class TrafficPath:
    """Two processes, and the addresses by family at which they reach each other.

    `netns` is the server's network namespace; `is_private` is True if nobody else uses it. `unavailable` is the reason
    if nothing can be sent.
    """

    name: str
    client: TrafficProcess
    server: TrafficProcess
    client_address: Mapping[str, str]
    server_address: Mapping[str, str]
    is_private: bool = False
    netns: int = 0
    unavailable: str = ""

    def ends(self) -> tuple[TrafficProcess, TrafficProcess]:
        """Return the client and the server. Raise CommandFailed if nothing can be sent."""
        if self.unavailable:
            raise CommandFailed(self.unavailable)
        return self.client, self.server


@contextmanager
def traffic_paths() -> Iterator[tuple[TrafficPath, ...]]:
    """Create the paths, while there is only one thread; on exit, end the processes and all that they created."""
    with ExitStack() as cleanup:
        processes = []
        with delay_interrupts():  # Python's own hooks around fork() would swallow an interrupt
            for name in (CLIENT, SERVER) * 2:
                processes.append(TrafficProcess(name))
                cleanup.callback(processes[-1].close)
        yield _loopback(*processes[:2]), _veth(*processes[2:])


def _loopback(client: TrafficProcess, server: TrafficProcess) -> TrafficPath:
    path = TrafficPath("loopback", client, server, _LOOPBACK, _LOOPBACK)
    try:
        is_up = devices.is_running("lo")
    except OSError as error:
        return replace(path, unavailable=f"there is no loopback device ({error.strerror})")
    if not is_up:
        return replace(
            path, unavailable="the loopback device is down in this namespace; run ip link set lo up"
        )
    return replace(path, netns=os.stat("/proc/self/ns/net").st_ino)


def _veth(client: TrafficProcess, server: TrafficProcess) -> TrafficPath:
    path = TrafficPath("veth", client, server, _CLIENT_ADDRESSES, _SERVER_ADDRESSES, is_private=True)
    try:
        client.run("new_namespace")
        netns = server.run("new_namespace")
    except CommandFailed as error:
        return replace(path, unavailable=f"no network namespace can be created: {error.what}")
    try:
        _connect_namespaces(client, server)
    except CommandFailed as error:
        return replace(path, unavailable=f"no veth pair can be created: {error.what}")
    return replace(path, netns=netns)


def _connect_namespaces(client: TrafficProcess, server: TrafficProcess) -> None:
    """Connect the processes' namespaces by a veth pair. Raise CommandFailed if that fails."""
    for process in (client, server):
        process.run("set_up", "lo")
    client.run("make_veth", _DEVICE, _DEVICE, server.pid)
    for process, addresses in ((client, _CLIENT_ADDRESSES), (server, _SERVER_ADDRESSES)):
        process.run("set_up", _DEVICE)
        for family, address in addresses.items():
            with suppress(CommandFailed):  # without IPv6 on this host, its traffic fails and reports that
                process.run("add_address", _DEVICE, address, _PREFIXES[family])
    for process in (client, server):
        process.run("wait_until_running", _DEVICE)


def compare_datagrams(
    lens: str, path: TrafficPath, count_seen: Callable[[str], Mapping[str, int]]
) -> list[SelfTestResult]:
    """Send datagrams of each IP version, and check that at least these were seen: other traffic is counted too.

    `count_seen` returns the datagrams of an IP version that were seen so far, by place.
    """
    results = []
    for version, count in zip(IP_VERSIONS, _DATAGRAMS, strict=True):
        what = f"{path.name} {version} UDP"
        before = count_seen(version)
        try:
            _send_datagrams(path, version, count)
        except CommandFailed as error:
            results.append(SelfTestResult(lens, what, skipped=error.what))
            continue
        for place, number in count_seen(version).items():
            packets = min(number - before.get(place, 0), count)
            results.append(SelfTestResult(lens, f"{what} {place}, at least", count, packets, "packets"))
    return results


def _send_datagrams(path: TrafficPath, family: str, count: int) -> None:
    """Send datagrams to a bound socket that nobody reads. Raise CommandFailed if that fails."""
    client, server = path.ends()
    port = server.run("bind_udp", "datagrams", path.server_address[family])
    client.run("bind_udp", "datagrams", path.client_address[family])
    client.run("send_datagrams", "datagrams", (path.server_address[family], port), count, _DATAGRAM_BYTES)
    for end in (client, server):
        end.run("close", "datagrams")


def send_to_closed_port(path: TrafficPath, family: str, count: int) -> None:
    """Send datagrams to a port that was just closed. Raise CommandFailed."""
    client, server = path.ends()
    port = server.run("bind_udp", "closed", path.server_address[family])
    server.run("close", "closed")
    client.run("bind_udp", "drops", path.client_address[family])
    client.run("send_datagrams", "drops", (path.server_address[family], port), count, _DATAGRAM_BYTES)
    client.run("close", "drops")


def read_until(read: Callable[[], Value], is_enough: Callable[[Value], bool]) -> Value:
    """Repeat a reading until it is enough, or too late: what waits in another CPU's queue is counted a moment later."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        value = read()
        if is_enough(value) or time.monotonic() > end:
            return value
        select.select([], [], [], _PAUSE_S)
