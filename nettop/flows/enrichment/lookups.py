# SPDX-License-Identifier: Apache-2.0
"""What files say of addresses and interfaces, read again when they change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nettop.flows.enrichment.enrich import Enrichment
from nettop.flows.enrichment.interfaces import Interface, InterfaceKey, InterfaceNames
from nettop.flows.enrichment.networks import Ranges
from nettop.flows.enrichment.reloading import Reloading
from nettop.flows.enrichment.sources import read_source


class Lookups(NamedTuple):
    """What is known of addresses and interfaces."""

    enrichment: Enrichment
    interfaces: InterfaceNames


class LookupFiles:
    """The files, and what they say. Any thread may take `current`, one thread checks."""

    def __init__(
        self,
        networks: Sequence[Path],
        interfaces: Sequence[Path],
        own_networks: Ranges | None,
        *,
        rereads: bool = True,
    ) -> None:
        """Reads the files. Of several the first one counts that knows. Without `rereads` no check finds a change.

        Raises NettopError if one cannot be read.
        """
        self._rereads = rereads
        self._networks = Reloading(networks, read_source, lambda sources: Enrichment(sources, own_networks))
        self._interfaces = Reloading(interfaces, InterfaceNames.from_csv, _joined)

    def current(self) -> Lookups:
        """What the files say now."""
        return Lookups(self._networks.current, self._interfaces.current)

    def check(self) -> list[str]:
        """Read what has changed since the last check, which may take seconds. Returns why something cannot be read."""
        checked = (self._networks, self._interfaces) if self._rereads else ()
        return [warning for files in checked for warning in files.check().warnings]


def _joined(parts: Sequence[InterfaceNames]) -> InterfaceNames:
    interfaces: dict[InterfaceKey, Interface] = {}
    for part in reversed(parts):
        interfaces |= part.interfaces
    return InterfaceNames(interfaces)
