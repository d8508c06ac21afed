# SPDX-License-Identifier: Apache-2.0
"""Where the self-test moves its traffic: over loopback, and between two private network namespaces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

from nettop.interrupts import undisturbed
from nettop.selftest import veth
from nettop.selftest.process import CommandFailed, TrafficProcess

CLIENT, SERVER = "doctor-client", "doctor-server"
FAMILIES = ("IPv4", "IPv6")
_LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}
_CLIENT_AT = {"IPv4": "192.0.2.1", "IPv6": "2001:db8::1"}
_SERVER_AT = {"IPv4": "192.0.2.2", "IPv6": "2001:db8::2"}
"""Networks for documentation (RFC 5737, RFC 3849), in namespaces that nobody else is in."""
_PREFIXES = {"IPv4": 24, "IPv6": 64}
_DEVICE = "nettop0"


@dataclass(frozen=True, slots=True)
class Place:
    """Two processes, and the addresses by family at which they reach each other.

    `netns` is the server's network namespace. Where `why_not` says why, nothing can be tried.
    """

    name: str
    client: TrafficProcess
    server: TrafficProcess
    client_at: Mapping[str, str]
    server_at: Mapping[str, str]
    is_private: bool = False
    netns: int = 0
    why_not: str = ""


@contextmanager
def stage() -> Iterator[tuple[Place, ...]]:
    """The places. Enter it while there is one thread only; leaving it ends the processes, and all that they made."""
    with ExitStack() as ends:
        peers = []
        with undisturbed():  # what Python itself does around a fork loses an interrupt
            for name in (CLIENT, SERVER) * 2:
                peers.append(TrafficProcess(name))
                ends.callback(peers[-1].close)
        yield _loopback(*peers[:2]), _veth(*peers[2:])


def _loopback(client: TrafficProcess, server: TrafficProcess) -> Place:
    place = Place("loopback", client, server, _LOOPBACK, _LOOPBACK)
    try:
        is_up = veth.is_running("lo")
    except OSError as error:
        return replace(place, why_not=f"there is no loopback device ({error.strerror})")
    if not is_up:
        return replace(place, why_not="the loopback device is down in this namespace: ip link set lo up")
    return replace(place, netns=os.stat("/proc/self/ns/net").st_ino)


def _veth(client: TrafficProcess, server: TrafficProcess) -> Place:
    place = Place("veth", client, server, _CLIENT_AT, _SERVER_AT, is_private=True)
    try:
        client.tell("isolate")
        netns = server.tell("isolate")
    except CommandFailed as error:
        return replace(place, why_not=f"to make a network namespace takes CAP_SYS_ADMIN ({error.what})")
    try:
        _wire(client, server)
    except CommandFailed as error:
        return replace(
            place, why_not=f"to join network namespaces takes CAP_NET_ADMIN and veth ({error.what})"
        )
    return replace(place, netns=netns)


def _wire(client: TrafficProcess, server: TrafficProcess) -> None:
    """Join their namespaces by a pair of devices. Raises CommandFailed."""
    for peer in (client, server):
        peer.tell("up", "lo")
    client.tell("wire", _DEVICE, _DEVICE, server.pid)
    for peer, addresses in ((client, _CLIENT_AT), (server, _SERVER_AT)):
        peer.tell("up", _DEVICE)
        for family, address in addresses.items():
            with suppress(CommandFailed):  # without IPv6 here its traffic fails, and says so
                peer.tell("address", _DEVICE, address, _PREFIXES[family])
    for peer in (client, server):
        peer.tell("running", _DEVICE)
