# SPDX-License-Identifier: Apache-2.0
"""The programs' counts by stage and class, and the packets now in each stage."""

from __future__ import annotations

import mmap
import time

import numpy as np

from nettop.kernel.bpf import maps
from nettop.kernel.bpf.program import Program
from nettop.probes.latency.programs import CLASSES, COUNTED_STAGES, COUNTS, FOLLOWED_SET, SET_ENTRIES
from nettop.snapshots.arrays import Array

_STALE_NS = 20 * 10**9
"""A packet that spent longer in a stage than a histogram covers will not be seen again."""
_TOP_BYTE = np.uint64(56)
_SHAPE = (COUNTED_STAGES, CLASSES)


class CountsTable:
    """The counts of a loaded program, readable until `close`."""

    def __init__(self, program: Program, followed_max: int) -> None:
        self._program = program
        self._sets = followed_max // SET_ENTRIES
        self._memory = mmap.mmap(
            program.maps["followed"], self._sets * FOLLOWED_SET.itemsize, mmap.MAP_SHARED
        )
        self._stale = np.zeros(_SHAPE, np.uint64)

    def read(self) -> tuple[Array, Array]:
        """Return the counts as COUNTS and the number of packets now in each stage, both by stage and class."""
        waiting = self._read_waiting()
        places = np.arange(COUNTED_STAGES * CLASSES, dtype=np.uint32)
        each = np.dtype((COUNTS, (maps.possible_cpus(),)))
        by_cpu, _ = maps.read_each(self._program.maps["counted"], places, each)
        counts = np.zeros(_SHAPE, COUNTS)
        for name in COUNTS.names or ():
            counts[name] = by_cpu[name].sum(axis=1, dtype=np.uint64).reshape(counts[name].shape)
        counts["unmatched"] += self._stale
        return counts, waiting

    def _read_waiting(self) -> Array:
        """Return the total weight of followed packets by stage and class. Stop following packets that will not be seen
        again, and count them as unmatched."""
        sets = np.frombuffer(self._memory, FOLLOWED_SET, self._sets)
        keys = sets["keys"].copy()
        at = np.nonzero(keys >> _TOP_BYTE)  # a claimed entry has no stage
        keys, packets = keys[at], sets["packets"][at]
        now, since = time.monotonic_ns(), packets["since"].astype(np.int64)
        is_stale = since < now - _STALE_NS
        waiting = np.zeros(_SHAPE, np.uint64)
        # While an entry is written, its class may still be the previous packet's.
        places = (
            (keys >> _TOP_BYTE).astype(np.intp) - 1,
            np.minimum(packets["class"], CLASSES - 1).astype(np.intp),
        )
        np.add.at(waiting, tuple(of[~is_stale] for of in places), packets["weight"][~is_stale])
        np.add.at(self._stale, tuple(of[is_stale] for of in places), packets["weight"][is_stale])
        sets["keys"][tuple(of[is_stale] for of in at)] = 0
        return waiting

    def close(self) -> None:
        """Unmap the table."""
        self._memory.close()


def no_counts() -> tuple[Array, Array]:
    """Return what `CountsTable.read` returns when nothing is counted."""
    return np.zeros(_SHAPE, COUNTS), np.zeros(_SHAPE, np.uint64)
