# SPDX-License-Identifier: Apache-2.0
"""The interfaces of all namespaces, by their own counters, as rows of the bandwidth lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nettop.kernel.net.links import Link, Negotiated
from nettop.probes.bandwidth.history import OWN_COUNTERS, OwnCounters
from nettop.probes.bandwidth.interfaces import state_of
from nettop.snapshots.bandwidth import COUNTERS_MODE, INTERFACES, VIRTUAL
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.snapshot import Rows, rows_from

Links = Mapping[int, tuple[Sequence[Link], Mapping[int, Negotiated]]]
"""The interfaces of each namespace, and what those with a known speed or duplex mode have negotiated, by index."""


class Interfaces:
    """Remembers what each interface had counted when it was first seen, maybe in another namespace."""

    def __init__(self) -> None:
        self._own: dict[int, OwnCounters] = {}

    def rows(self, by_namespace: Links, taken_ns: int, boot_ns: int) -> Rows:
        """Return a row for each interface except loopback, without names of namespaces."""
        found = [
            (row_id(netns, link.index), netns, link, negotiated.get(link.index, Negotiated()))
            for netns, (links, negotiated) in by_namespace.items()
            for link in links
            if not link.is_loopback
        ]
        self._own = {id_: self._counted(id_, link) for id_, _, link, _ in found}
        values = [
            _values(*interface, boot_ns)
            | {name: self._own[interface[0]].growth(parts) for name, parts in OWN_COUNTERS.items()}
            for interface in found
        ]
        return rows_from(INTERFACES, values, taken_ns)

    def _counted(self, id_: int, link: Link) -> OwnCounters:
        own = self._own.get(id_) or OwnCounters(link.statistics)
        own.add(link.statistics)
        return own


def _values(id_: int, netns: int, link: Link, negotiated: Negotiated, boot_ns: int) -> dict[str, Any]:
    """Return what a row says besides the interface's counters."""
    return {
        "id": id_,
        "interface": link.name,
        "kind": link.kind or ("ether" if link.has_bus_device() else "?"),
        "netns": netns,
        "state": state_of(link),
        "link_ups": link.carrier_ups,
        "backing": VIRTUAL,
        "mode": COUNTERS_MODE,
        "duplex": negotiated.duplex,
        "speed": negotiated.speed,
        "capacity": None if negotiated.speed is None else negotiated.speed * boot_ns // 1_000_000_000,
    }
