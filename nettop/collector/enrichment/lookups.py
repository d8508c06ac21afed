# SPDX-License-Identifier: Apache-2.0
"""Files with information about addresses and interfaces, reloaded when they change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from nettop.collector.enrichment.enrich import Enrichment
from nettop.collector.enrichment.interfaces import InterfaceKey, InterfaceNames
from nettop.collector.enrichment.networks import Ranges
from nettop.collector.enrichment.sources import read_source
from nettop.errors import NettopError

Part = TypeVar("Part")
Whole = TypeVar("Whole")


class Reloading(Generic[Part, Whole]):
    """A value built from the contents of several files. Any thread may read `current`; one thread calls `check`.

    `check` reloads a replaced, overwritten or restored file as a whole. If that fails, the previous contents stay in
    use. The constructor raises NettopError if it cannot read a file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[Path], Part],
        combine: Callable[[Sequence[Part]], Whole],
    ) -> None:
        self._read, self._combine = read, combine
        # Taken before reading, so that the next check notices a change meanwhile.
        self._states = {path: _state(path) for path in paths}
        self._parts = {path: read(path) for path in self._states}
        self.current = combine(list(self._parts.values()))

    def check(self) -> list[str]:
        """Reload what changed since the last check, which may take seconds. Return warnings for files that cannot be
        read, once per change.
        """
        has_changed, warnings = False, []
        for path, last in self._states.items():
            state = _state(path)
            if state == last:
                continue
            self._states[path] = state
            try:
                self._parts[path] = self._read(path)
            except NettopError as error:
                warnings.append(f"{error.what}; its previous contents stay in use ({error.remedy})")
            else:
                has_changed = True
        if has_changed:
            self.current = self._combine(list(self._parts.values()))
        return warnings


def _state(path: Path) -> tuple[int, ...]:
    """Return the fields of a file's status that a change alters, or the error that prevents reading it."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


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
        return [warning for files in checked for warning in files.check()]


def _joined(parts: Sequence[InterfaceNames]) -> InterfaceNames:
    names: dict[InterfaceKey, str] = {}
    for part in reversed(parts):
        names |= part.names
    return InterfaceNames(names)
