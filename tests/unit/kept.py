# SPDX-License-Identifier: Apache-2.0
"""The readings that are alive, while the garbage collector does not run."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from nettop.query.joined_rows import JoinedRows
from nettop.snapshots.snapshot import Frame, Rows, Snapshot

READINGS = (Snapshot, Frame, Rows, JoinedRows)


class Kept:
    """Readings that came to exist since `begin`, and still do."""

    def __init__(self) -> None:
        self._before = set(map(id, _alive()))

    def counts(self) -> Counter[str]:
        """Return their number, by type."""
        return Counter(type(alive).__name__ for alive in _alive() if id(alive) not in self._before)

    def in_cycles(self) -> Counter[str]:
        """Return the number of those that only the garbage collector frees, by type, and free them."""
        before = self.counts()
        gc.collect()
        return before - self.counts()


def _alive() -> list[object]:
    return [object_ for object_ in gc.get_objects() if isinstance(object_, READINGS)]


@contextmanager
def uncollected() -> Iterator[Kept]:
    """Run no garbage collection; yield the readings that are made meanwhile and kept.

    Commands enable the collector once they have imported their modules: only its threshold stays.
    """
    gc.collect()
    threshold = gc.get_threshold()
    gc.set_threshold(0)
    try:
        yield Kept()
    finally:
        gc.set_threshold(*threshold)
