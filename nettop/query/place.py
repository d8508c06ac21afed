# SPDX-License-Identifier: Apache-2.0
"""The subject of a finding (ports, processes, addresses), used to link causes and effects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from errno import EHOSTUNREACH, ENETUNREACH, ETIMEDOUT
from typing import Any

from nettop.query.address import address_bytes, address_text
from nettop.query.related_rows import distinct_values, listeners
from nettop.query.values import values_of
from nettop.query.view import View
from nettop.snapshots.arrays import Index, as_list, distinct_rows
from nettop.snapshots.connections import FAILURES, GIVEN_UP, LISTEN, REASONS, RESET_BY_US, SOCKETS, STATES
from nettop.snapshots.drops import COUNTERS, NO_ROUTE, PACKETS, SILENT_HOP
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Frame, known

PLACES_MAX = 64
"""Rows of a finding whose ports and processes are compared with those of others."""
ANY_ADDRESS = frozenset(("0.0.0.0", "::"))  # noqa: S104 - what a listener says that has no address of its own
_LOOPBACK = ("127.", "::1")
Addresses = Mapping[str, frozenset[int]]
"""Addresses of this host, with the network namespaces that have them."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a finding is about, by which one finding explains another."""

    ports: frozenset[int] = frozenset()
    pids: frozenset[int] = frozenset()
    processes: frozenset[str] = frozenset()
    programs: frozenset[tuple[Any, ...]] = frozenset()
    """Names, control groups and namespaces of processes: those that the workers of one server have in common."""
    interfaces: frozenset[tuple[str, int | None]] = frozenset()
    """Names, with the namespaces that they are in."""
    namespaces: frozenset[int] = frozenset()
    cpus: frozenset[int] = frozenset()
    protocols: frozenset[str] = frozenset()
    errors: frozenset[str] = frozenset()
    """Why connects fail, or would where a counter grows."""
    hooks: frozenset[str] = frozenset()
    """Where rules of the firewall are evaluated."""
    local: frozenset[str] = frozenset()
    remote: frozenset[str] = frozenset()
    is_outbound: bool = False
    is_inward: bool = False
    """True for what only sees connections to this host: a listener, a service, packets received, or a rule of the
    firewall for incoming packets."""

    def may_explain(self, other: Place, here: Callable[[], Addresses]) -> bool:
        """Return whether both share a port; without ports, a process, interface or namespace. None of what they know of
        the protocol, the error and the addresses may be different.

        A listener has one port of its connections, which have two; connections to a service have one in common, though
        each reading has others of them that are acknowledged. What an interface loses is not explained by
        something that merely is in its namespace, but by a CPU, which works for all. `here` returns the addresses of
        this host.
        """
        for ours, theirs in ((self.protocols, other.protocols), (self.errors, other.errors)):
            if ours and theirs and ours.isdisjoint(theirs):
                return False
        if self._is_walled_off(other) or self._never_sees(other) or not self._may_meet(other, here):
            return False
        is_of_interface = other.interfaces and not (other.ports or other.pids)
        pairs: list[tuple[frozenset[Any], frozenset[Any]]] = [
            (self.ports, other.ports),
            (self.pids, other.pids),
            (self.interfaces, other.interfaces),
            (self.cpus, other.cpus),
        ]
        if not is_of_interface:
            pairs.append((self.namespaces, other.namespaces))
        shared = (not ours.isdisjoint(theirs) for ours, theirs in pairs if ours and theirs)
        return next(shared, not is_of_interface or bool(self.cpus))

    def _is_walled_off(self, other: Place) -> bool:
        """Return whether both are in different namespaces, and one is about connections that never leave theirs."""
        return not self._is_in(other.namespaces) and (self._is_on_loopback() or other._is_on_loopback())

    def _never_sees(self, other: Place) -> bool:
        """Return whether these rules of the firewall never see packets of the other's connections: what a namespace
        forwards is not its own, and what it sends is of no other."""
        if not (self.namespaces and other.namespaces and other.remote):
            return False
        is_own = not self.namespaces.isdisjoint(other.namespaces)
        return self.hooks == {"forward" if is_own else "output"}

    def _is_on_loopback(self) -> bool:
        """Return whether all its addresses, as far as they are known, are of the loopback interface."""
        addresses = (self.local - ANY_ADDRESS) | self.remote
        return bool(addresses) and all(address.startswith(_LOOPBACK) for address in addresses)

    def _may_meet(self, other: Place, here: Callable[[], Addresses]) -> bool:
        """Return whether both may be about the same connections, by their addresses, as far as they are known."""
        if self.remote & other.remote:
            return True
        if self.remote and other.remote:
            if self.local or other.local:
                return (not self.local or bool(self.local & other.remote)) and (
                    not other.local or bool(self.remote & other.local)
                )
            if self.is_outbound and (other.is_outbound or other.is_inward):
                return other.is_inward and other._receives(self, self.remote, here)
        if other.is_inward and self.is_outbound:
            return bool(self.processes & other.processes)
        if other.is_inward and self.is_inward:
            return self._is_in(other.namespaces)
        if not (self.is_inward and other.is_outbound and other.remote):
            return True
        addresses = other.remote & self.local if self.local - ANY_ADDRESS else other.remote
        return self._receives(other, addresses, here)

    def _receives(self, other: Place, addresses: frozenset[str], here: Callable[[], Addresses]) -> bool:
        """Return whether what `other` sends to one of these addresses may arrive here: namespaces have their own
        loopback."""
        return any(
            self._is_in(other.namespaces)
            if address.startswith(_LOOPBACK)
            else address in self.local or (address in here() and self._is_in(here()[address]))
            for address in addresses
        )

    def _is_in(self, namespaces: frozenset[int]) -> bool:
        """Return whether it may be in one of these namespaces: they, or its own, may be unknown."""
        return not (namespaces and self.namespaces) or bool(namespaces & self.namespaces)

    def is_same_program(self, other: Place) -> bool:
        """Return whether both are about one process, or workers of one server: a service names just one of them."""
        return not (self.pids.isdisjoint(other.pids) and self.programs.isdisjoint(other.programs))

    def nearness(self, other: Place) -> tuple[bool, bool]:
        """Return whether both are about the same process, and the same namespace."""
        return bool(self.pids & other.pids), bool(self.namespaces & other.namespaces)


def place_of(view: View, at: Index) -> Place:
    """Return what rows are about."""
    known = view.table.by_name
    namespaces = values_of(view, "netns", at) if "netns" in known else [None] * len(at)
    interfaces = values_of(view, "interface", at) if "interface" in known else ()
    is_used = distinct_values(view, ("side",), at) == {"used"}
    # Connections that no process has accepted yet are those of their listener.
    is_unowned = view.table is SOCKETS and not distinct_values(view, ("pid",), at)
    owned = listeners(view, at)[:PLACES_MAX] if is_unowned else at
    return Place(
        ports=distinct_values(view, ("local_port", "remote_port", "port"), at),
        pids=distinct_values(view, ("pid",), owned),
        processes=distinct_values(view, ("process",), at),
        programs=_programs(view, owned),
        interfaces=frozenset(
            pair for pair in zip(interfaces, namespaces, strict=False) if pair[0] is not None
        ),
        namespaces=frozenset(number for number in namespaces if number is not None),
        cpus=distinct_values(view, ("cpu",), at),
        protocols=_protocols(view, at),
        errors=_errors(view, at),
        hooks=distinct_values(view, ("hook",), at),
        local=distinct_values(view, ("local_address",) if is_used else ("local_address", "address"), at),
        remote=distinct_values(view, ("remote_address", "address") if is_used else ("remote_address",), at)
        - ANY_ADDRESS,
        is_outbound=is_used or _directions(view, at) == {"outbound"},
        is_inward=_is_inward(view, at),
    )


def _programs(view: View, at: Index) -> frozenset[tuple[Any, ...]]:
    """Return the programs of rows, as far as they are known."""
    names = ("process", "cgroup", "netns")
    if not view.table.by_name.keys() >= set(names):
        return frozenset()
    values = zip(*(values_of(view, name, at) for name in names), strict=True)
    return frozenset(value for value in values if None not in value)


def _protocols(view: View, at: Index) -> frozenset[str]:
    """Return the transport protocols of rows, as far as they are known. Counters of a protocol have its name."""
    if view.table is FAILURES:
        return frozenset(("tcp",))
    names = [str(name).lower() for name in distinct_values(view, ("protocol",), at)]
    if view.table is COUNTERS:
        counters = distinct_values(view, ("name",), at)
        names = [name[:3].lower() for name in counters if name.startswith(("Tcp", "Udp"))]
    return frozenset("tcp" if name == "mptcp" else name for name in names)


def _errors(view: View, at: Index) -> frozenset[str]:
    """Return with what the connects of rows fail. A reset by this end is none."""
    if view.table is FAILURES:
        return distinct_values(view, ("reason",), at) - {REASONS[RESET_BY_US]}
    if view.table is PACKETS and distinct_values(view, ("reason",), at) <= SILENT_HOP:
        return frozenset(REASONS[code] for code in (EHOSTUNREACH, ETIMEDOUT, GIVEN_UP))
    is_no_route = view.table is COUNTERS and distinct_values(view, ("name",), at) <= NO_ROUTE
    return frozenset((REASONS[ENETUNREACH],)) if is_no_route else frozenset()


def _is_inward(view: View, at: Index) -> bool:
    """Return whether rows are only about what comes to this host. Dropped packets have the process that was to receive
    them."""
    return (
        (view.table is PACKETS and None not in values_of(view, "process", at))
        or _directions(view, at) == {"inbound"}
        or any(
            distinct_values(view, (name,), at) == {value}
            for name, value in (("state", STATES[LISTEN]), ("side", "served"), ("hook", "input"))
        )
    )


def _directions(view: View, at: Index) -> frozenset[str]:
    """Return who opened these connections, seen or inferred: what was open when nettop began is inferred."""
    return frozenset(value.removesuffix("?") for value in distinct_values(view, ("direction",), at))


def addresses_here(frames: Iterable[tuple[Lens, Frame]]) -> Addresses:
    """Return the addresses that sockets of this host have; of those in unknown namespaces, without these."""
    having: dict[str, set[int]] = defaultdict(set)
    tables = (frame.now.tables.get(SOCKETS.name) for _, frame in frames)
    for rows in (table for table in tables if table is not None and len(table)):
        local, netns = rows.array["local_address"], rows.array["netns"]
        firsts, _ = distinct_rows([local, netns])
        numbers = netns[firsts]
        for raw, number, is_known in zip(
            address_bytes(local[firsts]), as_list(numbers), known(numbers), strict=True
        ):
            having[address_text(raw)].update([number] * bool(is_known))
    return {address: frozenset(namespaces) for address, namespaces in having.items()}
