# SPDX-License-Identifier: Apache-2.0
"""Where sources and doors meet: the newest frame of each lens, and a wake-up without a payload."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nettop.errors import NettopError
from nettop.snapshots.snapshot import Frame, Snapshot

Wake = Callable[[], None]
"""Called from the sampler's thread when something was published; must return at once."""


class Bus:
    """The newest frame of each lens. Publishing replaces: a slow reader misses snapshots, never delays them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: dict[str, Frame] = {}
        self._failures: dict[str, NettopError] = {}
        self._wakes: list[Wake] = []

    def publish(self, snapshot: Snapshot, oldest_gap_ns: int = 0) -> None:
        """Make `snapshot` the newest of its lens and wake the readers.

        The frame's earlier snapshot stays while the last one is younger than `oldest_gap_ns`: a refresh right
        after a tick must not divide by next to nothing.
        """
        with self._lock:
            last = self._frames.get(snapshot.lens)
            self._frames[snapshot.lens] = Frame(snapshot, _earlier(last, snapshot, oldest_gap_ns))
            self._failures.pop(snapshot.lens, None)
        self._wake()

    def fail(self, lens: str, error: NettopError) -> None:
        """Say that `lens` cannot be read, and why, and wake the readers."""
        with self._lock:
            self._failures[lens] = error
        self._wake()

    def frame(self, lens: str) -> Frame | None:
        """The newest frame; None before the first snapshot."""
        with self._lock:
            return self._frames.get(lens)

    def failure(self, lens: str) -> NettopError | None:
        """Why `lens` gives nothing, if it does not."""
        with self._lock:
            return self._failures.get(lens)

    def forget(self, lens: str) -> None:
        """Drop what is held of a lens that nobody reads any more."""
        with self._lock:
            self._frames.pop(lens, None)

    def subscribe(self, wake: Wake) -> Callable[[], None]:
        """Have `wake` called at each publication; returns what ends it."""
        with self._lock:
            self._wakes.append(wake)

        def unsubscribe() -> None:
            with self._lock:
                self._wakes.remove(wake)

        return unsubscribe

    def _wake(self) -> None:
        with self._lock:
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()


def _earlier(last: Frame | None, new: Snapshot, oldest_gap_ns: int) -> Snapshot | None:
    if last is None:
        return None
    young = new.boot_ns - last.now.boot_ns < oldest_gap_ns
    return last.before if young and last.before is not None else last.now
