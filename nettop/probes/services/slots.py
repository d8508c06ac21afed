# SPDX-License-Identifier: Apache-2.0
"""Slots of services: when few are free, those of the services that have been idle longest are reused.

A slot is freed in two readings. In the first, the programs forget the service, and a client that returns to it gets
another slot. If the old slot is still unused at the second, the service leaves, and its slot is free. So nothing is
counted in a slot after another service has taken it.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import numpy as np

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.probes.services.programs import FIRST_SLOT, KEY, SERVICE, SERVICES_MAX, TALLY, partitions
from nettop.snapshots.arrays import Array, Index, as_list, copy_columns

_FREE_MIN, _FREE_TARGET = SERVICES_MAX // 2, SERVICES_MAX * 3 // 4
"""With fewer free slots than the first, idle services leave until the second is reached."""


class ServiceSlots:
    """Allocation of slots; those of idle services are reused.

    `fds` are the programs' maps by name, `services` and `tallies` the memory of two of them.
    """

    def __init__(self, fds: Mapping[str, int], services: mmap.mmap, tallies: mmap.mmap) -> None:
        self._fds, self._services, self._tallies = fds, services, tallies
        self._numbers = np.arange(SERVICES_MAX, dtype=np.uint32)
        """Number of the service in each slot; it grows each time the slot is reused."""
        self._given = self._generation = 0
        self._counted = np.zeros(SERVICES_MAX, np.uint64)
        self._used_ns = np.zeros(SERVICES_MAX, np.int64)
        self._leaving: Index = np.zeros(0, np.intp)
        self._free(np.arange(FIRST_SLOT, SERVICES_MAX))

    def numbers(self, count: int) -> Array:
        """Return the numbers of the services in the first slots (count,)."""
        return self._numbers[:count].copy()

    def choose_leaving(
        self, services: Array, tallies: Array, used: Array, *, taken: int, now_ns: int
    ) -> Index:
        """Return the slots of services that leave, for `release`.

        `services` and `tallies` (n,) are the values read of the first slots, `used` the numbers of services that have a
        connection, and `taken` the count of numbers taken.
        """
        counted = tallies.view(np.uint64).reshape(len(tallies), -1).sum(axis=1)
        is_used = np.isin(self._numbers[: len(services)], used) | (counted != self._counted[: len(services)])
        self._counted[: len(services)] = counted
        self._used_ns[: len(services)][is_used] = now_ns
        came_back: Index = self._leaving[is_used[self._leaving]]
        left: Index = self._leaving[~is_used[self._leaving]]
        # Services that are in use again may already have another slot.
        for slot, key in zip(as_list(came_back), _keys(services, came_back), strict=True):
            bpf.add_element(self._fds["known"], key.tobytes(), self._numbers[slot].tobytes())
        free = self._given - taken + len(left)
        is_idle = ~is_used & (services["began_at"] > 0)
        is_idle[left] = False
        idle = np.flatnonzero(is_idle)
        longest = idle[np.argsort(self._used_ns[idle], kind="stable")]
        self._leaving = longest[: _FREE_TARGET - free] if free < _FREE_MIN else longest[:0]
        maps.delete_all(self._fds["known"], _keys(services, self._leaving))
        return left

    def release(self, left: Index) -> None:
        """Free these slots after they were read."""
        np.frombuffer(self._services, SERVICE)[left] = np.zeros(1, SERVICE)
        np.frombuffer(self._tallies, TALLY).reshape(SERVICES_MAX, partitions())[left] = np.zeros(1, TALLY)
        self._counted[left] = 0
        self._generation += 1
        self._numbers[left] = left + self._generation * SERVICES_MAX
        self._free(np.sort(left))

    def _free(self, slots: Index) -> None:
        for slot in as_list(slots):
            at = np.uint32(self._given % SERVICES_MAX)
            bpf.set_element(self._fds["numbers"], at.tobytes(), self._numbers[slot].tobytes())
            self._given += 1
        if len(slots):
            bpf.set_element(self._fds["given"], bytes(4), np.uint64(self._given).tobytes())


def _keys(services: Array, slots: Index) -> Array:
    """Return the programs' keys of the services in these slots: KEY (n,)."""
    keys = np.zeros(len(slots), KEY)
    copy_columns(keys, services, KEY.names or (), of=slots)
    return keys
