# SPDX-License-Identifier: Apache-2.0
"""The interfaces whose packets the programs count: attached as they come, detached as they go."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nettop.kernel import bpf, maps
from nettop.kernel.links import Link
from nettop.kernel.program import Program
from nettop.probes.bandwidth.programs import (
    COUNTS,
    INTERFACE,
    INTERFACE_SET_ENTRIES,
    INTERFACE_SETS,
    INTERFACES_MAX,
    TC_PROGRAM,
    XDP_PROGRAM,
)
from nettop.snapshots.bandwidth import (
    AFTER_XDP_MODE,
    COUNTERS_MODE,
    GENERIC_MODE,
    MODES,
    NATIVE_MODE,
    TCX_MODE,
)
from nettop.snapshots.snapshot import Array

_GENERATIONS = 1 << 8
"""A slot that is used again has another number in flows, so that these are not taken for the new interface's."""

ATTACHMENTS = {
    NATIVE_MODE: (XDP_PROGRAM, bpf.XDP, bpf.XDP_NATIVE),
    GENERIC_MODE: (XDP_PROGRAM, bpf.XDP, bpf.XDP_GENERIC),
    TCX_MODE: (TC_PROGRAM, bpf.TCX_INGRESS, bpf.TCX_FIRST),
}
"""For each mode the program, where it is attached, and the flags."""


def modes_for(link: Link, xdp: str) -> tuple[int, ...]:
    """Return how to see what an interface receives, the best first, where the user wants `xdp`.

    Attaching native XDP resets the queues of many devices. It is for devices only: on a veth it cuts TCP to a
    third, as segments are no longer aggregated. Generic XDP comes last, as it does not see how many packets
    an aggregate was.
    """
    if xdp == "off":
        return ()
    if xdp == "generic":
        return (GENERIC_MODE, TCX_MODE)
    if not link.is_device():
        return (TCX_MODE, GENERIC_MODE)
    return (TCX_MODE, NATIVE_MODE, GENERIC_MODE) if xdp == "tcx" else (NATIVE_MODE, TCX_MODE, GENERIC_MODE)


@dataclass(slots=True)
class _Counted:
    """An interface that is counted: its place in the maps, its number in flows, what attaches the program that sees
    what it receives (-1: nothing does), why not by a better one, and what its place had counted before it came."""

    slot: int
    number: int
    mode: int
    descriptor: int
    refused: tuple[tuple[str, str], ...]
    before: tuple[Array, Array]


class CountedInterfaces:
    """Has the programs count interfaces of nettop's own namespace, by their index; closing detaches them."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._counted: dict[int, _Counted] = {}
        self._free = deque(range(INTERFACES_MAX))
        """Those that were free for longest come first: flows of interfaces that are gone have their numbers."""
        self._sets = np.zeros((INTERFACE_SETS, INTERFACE_SET_ENTRIES), INTERFACE)
        self._generations = [0] * INTERFACES_MAX
        self.without_place = 0
        """Interfaces that found no place in the maps, each time they were followed."""

    def follow(self, wanted: Mapping[int, Link], xdp: str) -> None:
        """Count these interfaces too; those that have left were told to `leave`."""
        for index, link in wanted.items():
            if index not in self._counted:
                self._enter(link, xdp)
        self.without_place += len(wanted) - len(self._counted)

    def has(self, index: int) -> bool:
        """Whether an interface is counted."""
        return index in self._counted

    def read(self, index: int) -> tuple[Array, Array] | None:
        """What an interface has received and sent since it is counted, each as COUNTS; None where it is not."""
        counted = self._counted.get(index)
        return None if counted is None else self._read_since(counted)

    def leave(self, index: int) -> tuple[Array, Array] | None:
        """Stop counting an interface; return what `read` would, to the last packet."""
        counted = self._counted.pop(index, None)
        if counted is None:
            return None
        self._replace(index, index, (0, 0, False))
        if counted.descriptor >= 0:
            os.close(counted.descriptor)
        self._free.append(counted.slot)
        return self._read_since(counted)

    def mode(self, link: Link) -> int:
        """Return how what an interface receives is seen."""
        counted = self._counted.get(link.index)
        mode = COUNTERS_MODE if counted is None else counted.mode
        return AFTER_XDP_MODE if mode == TCX_MODE and link.has_xdp else mode

    def refused(self, index: int) -> tuple[tuple[str, str], ...]:
        """The better modes that the interface refused, and why."""
        counted = self._counted.get(index)
        return () if counted is None else counted.refused

    def numbers(self) -> dict[int, int]:
        """The index of each interface by its number in flows."""
        return {counted.number: index for index, counted in self._counted.items()}

    def close(self) -> None:
        """Detach; a second call does nothing."""
        for index in list(self._counted):
            self.leave(index)

    def _enter(self, link: Link, xdp: str) -> None:
        if not self._free:
            return
        slot = self._free[0]
        number = slot + INTERFACES_MAX * self._generations[slot]
        before = self._read(slot)
        if not self._replace(link.index, 0, (link.index, number, link.has_ethernet)):
            return
        self._free.popleft()
        self._generations[slot] = (self._generations[slot] + 1) % _GENERATIONS
        mode, descriptor, refused = self._attach(link, xdp)
        self._counted[link.index] = _Counted(slot, number, mode, descriptor, refused, before)

    def _replace(self, index: int, old: int, entry: tuple[int, int, bool]) -> bool:
        """Replace, in the set of `index`, an entry of the index `old` (0: a free one); false where there is none."""
        place = index % INTERFACE_SETS
        entries = np.flatnonzero(self._sets["index"][place] == old)
        if len(entries):
            self._sets[place, entries[0]] = entry
            bpf.set_element(
                self._program.maps["interfaces"], np.uint32(place).tobytes(), self._sets[place].tobytes()
            )
        return len(entries) > 0

    def _attach(self, link: Link, xdp: str) -> tuple[int, int, tuple[tuple[str, str], ...]]:
        refused: list[tuple[str, str]] = []
        for mode in modes_for(link, xdp):
            name, attach_type, flags = ATTACHMENTS[mode]
            try:
                if name not in self._program.functions:
                    raise OSError(0, self._program.refused[name])
                descriptor = bpf.link(self._program.functions[name], attach_type, link.index, flags)
            except OSError as error:
                refused.append(
                    (MODES[mode], os.strerror(error.errno) if error.errno else str(error.strerror))
                )
            else:
                return mode, descriptor, tuple(refused)
        return COUNTERS_MODE, -1, tuple(refused)

    def _read_since(self, counted: _Counted) -> tuple[Array, Array]:
        received, sent = self._read(counted.slot)
        for name in COUNTS.names or ():
            received[name] -= counted.before[0][name]
            sent[name] -= counted.before[1][name]
        return received, sent

    def _read(self, slot: int) -> tuple[Array, Array]:
        """What all CPUs counted of a place in the maps: received and sent, arrays of COUNTS without dimensions."""
        sums = []
        for name in ("received", "sent"):
            by_cpu = maps.read_per_cpu(self._program.maps[name], slot, COUNTS)
            sums.append(np.zeros((), COUNTS))
            for field in COUNTS.names or ():
                sums[-1][field] = by_cpu[field].sum(axis=0, dtype=np.uint64)
        return sums[0], sums[1]
