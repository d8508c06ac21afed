# SPDX-License-Identifier: Apache-2.0
"""The places of services: when few are free, those of the services that have been idle for longest go to others.

A place is given back in two readings. In the first the programs forget the service: whoever comes to it then gets
another place. If nobody has used the old one by the second, the service leaves, and its place is free. So nothing is
counted in a place after another service has got it.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import numpy as np

from nettop.kernel import bpf, maps
from nettop.probes.services.programs import FIRST_PLACE, KEY, SERVICE, SERVICES_MAX, TALLY, partitions
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.snapshot import Array

_FREE_LEAST, _FREE_WANTED = SERVICES_MAX // 2, SERVICES_MAX * 3 // 4
"""When fewer places are free, idle services leave until so many are."""


class Places:
    """Gives the places of idle services to others.

    `fds` are the maps of the programs by name, `services` and `tallies` the memory of two of them.
    """

    def __init__(self, fds: Mapping[str, int], services: mmap.mmap, tallies: mmap.mmap) -> None:
        self._fds, self._services, self._tallies = fds, services, tallies
        self._numbers = np.arange(SERVICES_MAX, dtype=np.uint32)
        """The number of the service in each place. A service that comes later has a larger one."""
        self._given = self._generation = 0
        self._counted = np.zeros(SERVICES_MAX, np.uint64)
        self._used_ns = np.zeros(SERVICES_MAX, np.int64)
        self._leaving: Index = np.zeros(0, np.intp)
        self._give(np.arange(FIRST_PLACE, SERVICES_MAX))

    def numbers(self, count: int) -> Array:
        """Return the numbers of the services in the first places (count,)."""
        return self._numbers[:count].copy()

    def leaving(self, services: Array, tallies: Array, used: Array, *, taken: int, now_ns: int) -> Index:
        """Return the places whose services leave, which are to be given back.

        `services` and `tallies` (n,) are what was read of the first places, `used` the numbers of services that have a
        connection, and `taken` how many numbers were taken.
        """
        counted = tallies.view(np.uint64).reshape(len(tallies), -1).sum(axis=1)
        is_used = np.isin(self._numbers[: len(services)], used) | (counted != self._counted[: len(services)])
        self._counted[: len(services)] = counted
        self._used_ns[: len(services)][is_used] = now_ns
        came_back: Index = self._leaving[is_used[self._leaving]]
        left: Index = self._leaving[~is_used[self._leaving]]
        self._remember(services, came_back)
        free = self._given - taken + len(left)
        is_idle = ~is_used & (services["began_at"] > 0)
        is_idle[left] = False
        idle = np.flatnonzero(is_idle)
        longest = idle[np.argsort(self._used_ns[idle], kind="stable")]
        self._leaving = longest[: _FREE_WANTED - free] if free < _FREE_LEAST else longest[:0]
        maps.delete_all(self._fds["known"], _keys(services, self._leaving))
        return left

    def give_back(self, left: Index) -> None:
        """Give places to others, once they were read."""
        np.frombuffer(self._services, SERVICE)[left] = np.zeros(1, SERVICE)
        np.frombuffer(self._tallies, TALLY).reshape(SERVICES_MAX, partitions())[left] = np.zeros(1, TALLY)
        self._counted[left] = 0
        self._generation += 1
        self._numbers[left] = left + self._generation * SERVICES_MAX
        self._give(np.sort(left))

    def _give(self, places: Index) -> None:
        for place in as_list(places):
            at = np.uint32(self._given % SERVICES_MAX)
            bpf.set_element(self._fds["numbers"], at.tobytes(), self._numbers[place].tobytes())
            self._given += 1
        if len(places):
            bpf.set_element(self._fds["given"], bytes(4), np.uint64(self._given).tobytes())

    def _remember(self, services: Array, places: Index) -> None:
        """Have the programs know services again that are used, unless they have another place by now."""
        for place, key in zip(as_list(places), _keys(services, places), strict=True):
            bpf.add_element(self._fds["known"], key.tobytes(), self._numbers[place].tobytes())


def _keys(services: Array, places: Index) -> Array:
    """Return what programs know the services in these places by: KEY (n,)."""
    keys = np.zeros(len(places), KEY)
    for name in KEY.names or ():
        keys[name] = services[name][places]
    return keys
