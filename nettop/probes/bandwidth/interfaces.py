# SPDX-License-Identifier: Apache-2.0
"""Interfaces whose packets the programs count, from when they appear until they go."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass

import numpy as np

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.kernel.bpf.program import Program
from nettop.kernel.net.links import Link
from nettop.probes.bandwidth import programs
from nettop.snapshots import bandwidth as spec
from nettop.snapshots.arrays import Array

_GENERATIONS = 1 << 8
"""A reused slot gets a new number in flows, so that old flows are not attributed to the new interface."""

ATTACHMENTS = {
    spec.NATIVE_MODE: (programs.XDP_PROGRAM, bpf.XDP, bpf.XDP_NATIVE),
    spec.GENERIC_MODE: (programs.XDP_PROGRAM, bpf.XDP, bpf.XDP_GENERIC),
    spec.TCX_MODE: (programs.TC_PROGRAM, bpf.TCX_INGRESS, bpf.TCX_FIRST),
}
"""The program, attach type and flags of each mode."""


def modes_for(link: Link, xdp: str) -> tuple[int, ...]:
    """Return the receive modes to try on an interface, best first, given the option `--xdp`.

    Attaching native XDP resets the queues of many devices. nettop uses it only on interfaces with a bus device: on a
    veth it cuts TCP throughput to a third, because segments are no longer aggregated. Generic XDP comes last because it
    does not see how many packets an aggregate holds.
    """
    if xdp == "off":
        return ()
    if xdp == "generic":
        return (spec.GENERIC_MODE, spec.TCX_MODE)
    if not link.has_bus_device():
        return (spec.TCX_MODE, spec.GENERIC_MODE)
    return (
        (spec.TCX_MODE, spec.NATIVE_MODE, spec.GENERIC_MODE)
        if xdp == "tcx"
        else (spec.NATIVE_MODE, spec.TCX_MODE, spec.GENERIC_MODE)
    )


def state_of(link: Link) -> int:
    """Return the state of an interface, as a number of STATES."""
    return (spec.UP if link.has_carrier else spec.UNPLUGGED) if link.is_up else spec.DOWN


@dataclass(slots=True)
class Counted:
    """A counted interface: its slot in the maps, its number in flows, its receive mode, why better modes were refused,
    and the slot's counters before the interface took it."""

    index: int
    slot: int
    number: int
    mode: int
    refused: tuple[tuple[str, str], ...]
    before: tuple[Array, Array]

    def mode_of(self, link: Link) -> int:
        """Return the receive mode, given the interface's last reading."""
        return spec.AFTER_XDP_MODE if self.mode == spec.TCX_MODE and link.has_xdp else self.mode


class CountedInterfaces:
    """Interfaces of nettop's own namespace that the programs count; closing detaches them."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._links: dict[int, int] = {}
        """Descriptors of links, by slot."""
        self._free = deque(range(programs.INTERFACES_MAX))
        """Free slots, the longest free first: flows of removed interfaces still carry their numbers."""
        self._sets = np.zeros((programs.INTERFACE_SETS, programs.INTERFACE_SET_ENTRIES), programs.INTERFACE)
        self._generations = [0] * programs.INTERFACES_MAX

    def read(self, counted: Counted) -> tuple[Array, Array]:
        """Return an interface's received and sent COUNTS since counting began."""
        received, sent = self._read(counted.slot)
        for name in programs.COUNTS.names or ():
            received[name] -= counted.before[0][name]
            sent[name] -= counted.before[1][name]
        return received, sent

    def leave(self, counted: Counted) -> tuple[Array, Array]:
        """Stop counting an interface and return its final counts, like `read`."""
        self._replace(counted.index, counted.index, (0, 0, False))
        if counted.slot in self._links:
            os.close(self._links.pop(counted.slot))
        self._free.append(counted.slot)
        return self.read(counted)

    def close(self) -> None:
        """Detach from all interfaces; a second call is a no-op."""
        while self._links:
            os.close(self._links.popitem()[1])

    def enter(self, link: Link, xdp: str) -> Counted | None:
        """Count this interface too; None if there is no free slot."""
        if not self._free:
            return None
        slot = self._free[0]
        number = slot + programs.INTERFACES_MAX * self._generations[slot]
        before = self._read(slot)
        if not self._replace(link.index, 0, (link.index, number, link.has_ethernet)):
            return None
        self._free.popleft()
        self._generations[slot] = (self._generations[slot] + 1) % _GENERATIONS
        mode, refused = self._attach(link, slot, xdp)
        return Counted(link.index, slot, number, mode, refused, before)

    def _replace(self, index: int, old: int, entry: tuple[int, int, bool]) -> bool:
        """Replace the entry with index `old` (0: a free one) in the set of `index`; return False if there is none."""
        place = index % programs.INTERFACE_SETS
        entries = np.flatnonzero(self._sets["index"][place] == old)
        if len(entries):
            self._sets[place, entries[0]] = entry
            bpf.set_element(
                self._program.maps["interfaces"], np.uint32(place).tobytes(), self._sets[place].tobytes()
            )
        return len(entries) > 0

    def _attach(self, link: Link, slot: int, xdp: str) -> tuple[int, tuple[tuple[str, str], ...]]:
        refused: list[tuple[str, str]] = []
        for mode in modes_for(link, xdp):
            name, attach_type, flags = ATTACHMENTS[mode]
            try:
                if name not in self._program.functions:
                    raise OSError(0, self._program.refused[name])
                self._links[slot] = bpf.link(self._program.functions[name], attach_type, link.index, flags)
            except OSError as error:
                refused.append(
                    (spec.MODES[mode], os.strerror(error.errno) if error.errno else str(error.strerror))
                )
            else:
                return mode, tuple(refused)
        return spec.COUNTERS_MODE, tuple(refused)

    def _read(self, slot: int) -> tuple[Array, Array]:
        """Return a slot's received and sent counts, summed over all CPUs, as zero-dimensional COUNTS."""
        received, sent = (self._program.maps[name] for name in ("received", "sent"))
        return maps.sum_per_cpu(received, slot, programs.COUNTS), maps.sum_per_cpu(
            sent, slot, programs.COUNTS
        )
