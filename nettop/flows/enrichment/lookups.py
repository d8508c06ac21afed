# SPDX-License-Identifier: Apache-2.0
"""Files with information about addresses and interfaces, reloaded when they change."""

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
    """Information about addresses and interfaces."""

    enrichment: Enrichment
    interfaces: InterfaceNames


class LookupFiles:
    """The lookup files and their content. Any thread may read `current`; one thread calls `check`."""

    def __init__(
        self,
        networks: Sequence[Path],
        interfaces: Sequence[Path],
        own_networks: Ranges | None,
        *,
        rereads: bool = True,
    ) -> None:
        """Read the files. The first one with an answer wins. Without `rereads`, `check` never reloads a file.

        Raise NettopError if one cannot be read.
        """
        self._rereads = rereads
        self._networks = Reloading(networks, read_source, lambda sources: Enrichment(sources, own_networks))
        self._interfaces = Reloading(interfaces, InterfaceNames.from_csv, _joined)

    def current(self) -> Lookups:
        """Return the current content of the files."""
        return Lookups(self._networks.current, self._interfaces.current)

    def check(self) -> list[str]:
        """Reload files changed since the last check, which may take seconds. Return warnings for those that cannot be
        read.
        """
        checked = (self._networks, self._interfaces) if self._rereads else ()
        return [warning for files in checked for warning in files.check().warnings]


def _joined(parts: Sequence[InterfaceNames]) -> InterfaceNames:
    interfaces: dict[InterfaceKey, Interface] = {}
    for part in reversed(parts):
        interfaces |= part.interfaces
    return InterfaceNames(interfaces)
