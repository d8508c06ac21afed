# SPDX-License-Identifier: Apache-2.0
"""Files with information about addresses and interfaces, reloaded when they change."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nettop.collector.enrichment.enrich import Enrichment
from nettop.collector.enrichment.interfaces import InterfaceKey, InterfaceNames
from nettop.collector.enrichment.networks import Ranges
from nettop.collector.enrichment.sources import read_source
from nettop.errors import NettopError


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
        self._own_networks, self._rereads = own_networks, rereads
        # Taken before reading, so that the next check notices a change meanwhile.
        self._states = {path: _state(path) for path in (*networks, *interfaces)}
        self._networks = {path: read_source(path) for path in networks}
        self._interfaces = {path: InterfaceNames.from_csv(path) for path in interfaces}
        self._current = self._combined()

    def current(self) -> Lookups:
        """Return the current content of the files."""
        return self._current

    def check(self) -> list[str]:
        """Reload files replaced, overwritten or restored since the last check as a whole, which may take seconds. If
        that fails, the previous contents stay in use.

        Return warnings for those that cannot be read, once per change.
        """
        has_changed, warnings = False, []
        for path, last in self._states.items() if self._rereads else ():
            state = _state(path)
            if state == last:
                continue
            self._states[path] = state
            try:
                if path in self._networks:
                    self._networks[path] = read_source(path)
                if path in self._interfaces:
                    self._interfaces[path] = InterfaceNames.from_csv(path)
            except NettopError as error:
                warnings.append(f"{error.what}; its previous contents stay in use ({error.remedy})")
            else:
                has_changed = True
        if has_changed:
            self._current = self._combined()
        return warnings

    def _combined(self) -> Lookups:
        names: dict[InterfaceKey, str] = {}
        for part in reversed(self._interfaces.values()):
            names |= part.names
        return Lookups(Enrichment(list(self._networks.values()), self._own_networks), InterfaceNames(names))


def _state(path: Path) -> tuple[int, ...]:
    """Return the fields of a file's status that a change alters, or the error that prevents reading it."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
