# SPDX-License-Identifier: Apache-2.0
"""The places of services: which service gets and keeps one; meanwhile nothing is counted twice or lost."""

from __future__ import annotations

import mmap
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from nettop.probes.services import slots as probed
from nettop.probes.services.programs import FIRST_SLOT, KEY, SERVICE, SERVICES_MAX, TALLY, partitions
from nettop.probes.services.slots import ServiceSlots
from nettop.snapshots.arrays import Array, Index

_KNOWN, _NUMBERS, _GIVEN = range(3)
_NS = 1_000_000_000


class Kernel:
    """The maps, and the programs' effects on them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.known: dict[bytes, int] = {}
        self.without_place = self.taken = 0
        self._given = 0
        self._numbers = np.zeros(SERVICES_MAX, np.uint32)
        self.services = mmap.mmap(-1, SERVICES_MAX * SERVICE.itemsize)
        self.tallies = mmap.mmap(-1, SERVICES_MAX * partitions() * TALLY.itemsize)
        patch.setattr(probed.bpf, "set_element", self._set)
        patch.setattr(probed.bpf, "add_element", self._add)
        patch.setattr(probed.maps, "delete_all", self._delete)
        self.places = ServiceSlots(
            {"known": _KNOWN, "numbers": _NUMBERS, "given": _GIVEN}, self.services, self.tallies
        )
        self.now_ns = 0

    def _set(self, map_fd: int, key: bytes, value: bytes) -> None:
        if map_fd == _NUMBERS:
            self._numbers[int.from_bytes(key, "little")] = int.from_bytes(value, "little")
        else:
            self._given = int.from_bytes(value, "little")

    def _add(self, _map_fd: int, key: bytes, value: bytes) -> None:
        self.known.setdefault(key, int.from_bytes(value, "little"))

    def _delete(self, _map_fd: int, keys: Array) -> None:
        for key in keys:
            self.known.pop(key.tobytes(), None)

    def number_of(self, port: int) -> int:
        """Return the number of the service at a port, as a new connection gets it; 0 without a place."""
        key = np.zeros(1, KEY)
        key["address"], key["port"] = port, port % 65536
        name = key.tobytes()
        if name in self.known:
            return self.known[name]
        if self.taken >= self._given:
            self.without_place += 1
            return 0
        number = int(self._numbers[self.taken % SERVICES_MAX])
        self.taken += 1
        self.known[name] = number
        services = np.frombuffer(self.services, SERVICE)
        for column in KEY.names or ():
            services[column][number % SERVICES_MAX] = key[column][0]
        services["began_at"][number % SERVICES_MAX] = 1
        return number

    def answer(self, number: int) -> None:
        """Have a service answer once."""
        np.frombuffer(self.tallies, TALLY)["response_ns"][number % SERVICES_MAX * partitions()] += 1

    def read(self, *connected: int) -> tuple[dict[int, int], dict[int, int]]:
        """Return the responses of the services that are there, and of those that have left, by their number."""
        self.now_ns += _NS
        count = min(FIRST_SLOT + self.taken, SERVICES_MAX)
        services = np.frombuffer(self.services, SERVICE, count).copy()
        by_partition = np.frombuffer(self.tallies, TALLY, count * partitions()).reshape(count, partitions())
        tallies = np.zeros(count, TALLY)
        tallies["response_ns"] = by_partition["response_ns"].sum(axis=1)
        numbers = self.places.numbers(count)
        left: Index = self.places.choose_leaving(
            services, tallies, np.array(connected, np.uint32), taken=self.taken, now_ns=self.now_ns
        )
        self.places.release(left)
        responses: dict[int, Any] = dict(zip(numbers.tolist(), tallies["response_ns"].tolist(), strict=True))
        gone = {number: responses.pop(number) for number in numbers[left].tolist()}
        return {number: count for number, count in responses.items() if count}, gone


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Return one without services."""
    return Kernel(monkeypatch)


def test_ten_thousand_services_one_after_the_other(kernel: Kernel) -> None:
    """Each service gets a place with an increasing number, as long as under a quarter of places arrive per reading."""
    seen = [0]
    ended = 0
    for first in range(0, 10_000, 200):
        new = [kernel.number_of(port) for port in range(first, first + 200)]
        assert all(before < number for before, number in pairwise((seen[-1], *new)))
        seen += new
        for number in new:
            kernel.answer(number)
        listed, left = kernel.read()
        assert set(new) <= listed.keys()
        ended += sum(left.values())
        assert sum(listed.values()) + ended == first + 200
    assert kernel.without_place == 0


def test_connected_services_keep_their_place(kernel: Kernel) -> None:
    """Services with connections stay, however long idle; of the others the most recently used stay."""
    kept = kernel.number_of(1)
    used = kernel.number_of(2)
    for number in (kept, used):
        kernel.answer(number)
    for port in range(10, 5000):
        kernel.answer(kernel.number_of(port))
        if port % 100 == 0:
            kernel.answer(used)
            listed, _ = kernel.read(kept)
            assert {kept, used} <= listed.keys()
    assert (kernel.number_of(1), kernel.number_of(2)) == (kept, used)


def test_a_service_that_is_used_as_it_leaves_stays(kernel: Kernel) -> None:
    """A connection that got its number before an eviction counts there; later ones get a new or the same place."""
    numbers = [kernel.number_of(port) for port in range(SERVICES_MAX * 3 // 4)]
    for number in numbers:
        kernel.answer(number)
    kernel.read()
    kernel.read()  # the first ones are forgotten
    late, again = numbers[:2]
    kernel.answer(late)
    other = kernel.number_of(1)
    assert other not in numbers
    kernel.answer(other)
    listed, left = kernel.read()
    assert listed[late] == 2
    assert kernel.number_of(0) == late
    assert left[again] == 1 and listed[other] == 1


def test_a_table_that_is_full_of_used_services(kernel: Kernel) -> None:
    """If all places are in use none is evicted, and services without a place are counted."""
    numbers = [kernel.number_of(port) for port in range(SERVICES_MAX)]
    assert kernel.without_place == FIRST_SLOT
    for _ in range(3):
        assert not kernel.read(*numbers)[1]
    kernel.read()
    kernel.read()
    assert kernel.number_of(SERVICES_MAX) > 0
