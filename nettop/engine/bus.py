# SPDX-License-Identifier: Apache-2.0
"""What sources publish and frontends read: the newest frame of each lens, and a wake-up without a payload.

Rows of append tables are kept twice: the newest in the frame, and every row in a bounded queue of each reader that
must not miss any.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from nettop.errors import NettopError
from nettop.query.batches import KEPT_ROWS
from nettop.snapshots.arrays import joined
from nettop.snapshots.snapshot import Frame, Rows, Snapshot

Wake = Callable[[], None]
"""Called from the sampler's thread when something was published; must return at once."""

QUEUED_ROWS = 131_072
"""Rows that wait for one reader; beyond that the oldest are dropped, and counted."""
_PIECE_ROWS = 1_000
"""Batches smaller than this are joined, so that a frame holds few."""
_PIECES = 4
"""An average begins at one of about this many snapshots, spread over the time that it covers."""


class Feed:
    """Every row of an append table, for one reader: rows wait here until it takes them."""

    def __init__(self, wake: Wake, close: Callable[[], None]) -> None:
        self.lost = 0
        self.close = close
        """Add no more rows."""
        self._wake = wake
        self._lock = threading.Lock()
        self._batches: deque[Rows] = deque()
        self._waiting = 0

    def put(self, batch: Rows) -> None:
        """Add a batch, and wake the reader."""
        with self._lock:
            self._batches.append(batch)
            self._waiting += len(batch)
            while self._waiting > QUEUED_ROWS and len(self._batches) > 1:
                oldest = self._batches.popleft()
                self._waiting -= len(oldest)
                self.lost += len(oldest)
        self._wake()

    def take(self) -> list[Rows]:
        """The rows that wait, the oldest first."""
        with self._lock:
            taken, self._waiting = list(self._batches), 0
            self._batches.clear()
            return taken


class Bus:
    """The newest frame of each lens. Publishing replaces: a slow reader misses snapshots, never delays them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: dict[str, Frame] = {}
        self._earlier: dict[str, list[Snapshot]] = {}
        self._average_ns = 0
        self._failures: dict[str, NettopError] = {}
        self._subscribers: list[Wake] = []
        self._batches: dict[str, dict[str, tuple[Rows, ...]]] = {}
        self._feeds: list[tuple[tuple[str, str], Feed]] = []

    def publish(self, snapshot: Snapshot, oldest_gap_ns: int = 0) -> None:
        """Make `snapshot` the newest of its lens and wake the readers.

        The frame's earlier snapshot is the newest that is as old as the average is long, or the oldest of all. It is
        not younger than `oldest_gap_ns` either: a refresh right after a tick must not divide by next to nothing. Once
        there is one from when every hook worked, it is not older than that.
        """
        with self._lock:
            last = self._frames.get(snapshot.lens)
            earlier = [] if last is None else [*self._earlier[snapshot.lens], last.now]
            earlier = [each for each in earlier if each.boot_ns >= snapshot.whole_since_ns] or earlier
            earlier = _thinned(earlier, max(self._average_ns // _PIECES, oldest_gap_ns))
            least_ns = max(self._average_ns - oldest_gap_ns, oldest_gap_ns)
            old_enough = sum(snapshot.boot_ns - each.boot_ns >= least_ns for each in earlier)
            self._earlier[snapshot.lens] = earlier = earlier[max(0, old_enough - 1) :]
            batches = dict(self._batches.get(snapshot.lens, {}))
            self._frames[snapshot.lens] = Frame(snapshot, earlier[0] if earlier else None, batches)
            self._failures.pop(snapshot.lens, None)
        self._wake()

    def average_over(self, seconds: float) -> None:
        """Take the rates of frames over this long from the next snapshot on; 0: over each interval."""
        with self._lock:
            self._average_ns = round(seconds * 1e9)

    def append(self, lens: str, batches: tuple[Rows, ...]) -> None:
        """Add rows to append tables of `lens`: at once for feeds, with the next snapshot for frames."""
        with self._lock:
            kept = self._batches.setdefault(lens, {})
            for batch in batches:
                kept[batch.table.name] = _newest((*kept.get(batch.table.name, ()), batch))
            feeds = tuple(self._feeds)
        for batch in batches:
            for table, feed in feeds:
                if table == (lens, batch.table.name):
                    feed.put(batch)

    def feed(self, lens: str, table: str, wake: Wake) -> Feed:
        """Every row that is added to an append table from now on; `wake` is called when there are some."""

        def close() -> None:
            with self._lock:
                self._feeds = [entry for entry in self._feeds if entry[1] is not feed]

        feed = Feed(wake, close)
        with self._lock:
            self._feeds.append(((lens, table), feed))
        return feed

    def fail(self, lens: str, error: NettopError) -> None:
        """Note why `lens` cannot be read, and wake the readers."""
        with self._lock:
            self._failures[lens] = error
        self._wake()

    def frame(self, lens: str) -> Frame | None:
        """The newest frame; None before the first snapshot."""
        with self._lock:
            return self._frames.get(lens)

    def failure(self, lens: str) -> NettopError | None:
        """Why `lens` cannot be read; None while it can."""
        with self._lock:
            return self._failures.get(lens)

    def forget(self, lens: str) -> None:
        """Drop the frames of a lens that has detached."""
        with self._lock:
            self._frames.pop(lens, None)
            self._earlier.pop(lens, None)
            self._batches.pop(lens, None)

    def subscribe(self, wake: Wake) -> Callable[[], None]:
        """Call `wake` at each publication; returns what ends that."""
        with self._lock:
            self._subscribers.append(wake)

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers.remove(wake)

        return unsubscribe

    def _wake(self) -> None:
        with self._lock:
            subscribers = tuple(self._subscribers)
        for wake in subscribers:
            wake()


def _thinned(snapshots: list[Snapshot], spacing_ns: int) -> list[Snapshot]:
    """The snapshots, the oldest first, without the last but one where it follows too soon on the one before it."""
    is_close = len(snapshots) > 2 and snapshots[-2].boot_ns - snapshots[-3].boot_ns < spacing_ns
    return [*snapshots[:-2], snapshots[-1]] if is_close else snapshots


def _newest(batches: tuple[Rows, ...]) -> tuple[Rows, ...]:
    """The batches without old ones that no view shows; the newest two are joined while they are small."""
    kept, rows = [batches[-1]], len(batches[-1])
    for batch in reversed(batches[:-1]):
        if rows >= KEPT_ROWS:
            break
        rows += len(batch)
        kept.append(batch)
    if len(kept) > 1 and len(kept[0]) + len(kept[1]) <= _PIECE_ROWS:
        new, last = kept[:2]
        if all(last.texts[name] is texts for name, texts in new.texts.items()):  # their codes are the same
            kept[:2] = [replace(new, array=joined(last.array, new.array))]
    return tuple(reversed(kept))
