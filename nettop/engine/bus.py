# SPDX-License-Identifier: Apache-2.0
"""The bus between sources and frontends: the newest frame of each lens, and a wake-up without a payload.

Rows of append tables are kept twice: the newest in the frame, and all of them in a bounded queue per reader that must
not miss any.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable

from nettop.errors import NettopError
from nettop.query.batches import concatenate_batches
from nettop.snapshots.snapshot import Frame, Rows, Snapshot

Wake = Callable[[], None]
"""Function that the sampler's thread calls after a publication; it must return at once."""

QUEUED_ROWS = 131_072
"""Maximum rows queued for one reader; beyond it the oldest are dropped and counted."""
_PIECE_ROWS = 1_000
"""Batches up to this size are concatenated, so that a frame holds few."""
_PIECES = 4
"""Number of snapshots kept across the averaging time; an average starts from one of them."""


class Feed:
    """A queue of an append table's rows for one reader."""

    def __init__(self, wake: Wake, close: Callable[[], None]) -> None:
        self.lost = 0
        self.close = close
        """Function that stops the feed."""
        self._wake = wake
        self._lock = threading.Lock()
        self._batches: deque[Rows] = deque()
        self._waiting = 0

    def put(self, batch: Rows) -> None:
        """Add a batch and wake the reader."""
        with self._lock:
            self._batches.append(batch)
            self._waiting += len(batch)
            while self._waiting > QUEUED_ROWS and len(self._batches) > 1:
                oldest = self._batches.popleft()
                self._waiting -= len(oldest)
                self.lost += len(oldest)
        self._wake()

    def take(self) -> list[Rows]:
        """Remove and return the queued rows, the oldest first."""
        with self._lock:
            taken, self._waiting = list(self._batches), 0
            self._batches.clear()
            return taken


class Bus:
    """The newest frame of each lens. Publishing replaces it: a slow reader misses snapshots but never delays them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: dict[str, Frame] = {}
        self._earlier: dict[str, list[Snapshot]] = {}
        self._precedents: dict[str, Snapshot] = {}
        self._average_ns = 0
        self._failures: dict[str, NettopError] = {}
        self._subscribers: list[Wake] = []
        self._batches: dict[str, dict[str, tuple[Rows, ...]]] = {}
        self._feeds: list[tuple[tuple[str, str], Feed]] = []

    def publish(self, snapshot: Snapshot, oldest_gap_ns: int = 0) -> None:
        """Make `snapshot` the newest of its lens and wake the readers.

        The frame's earlier snapshot is the newest one that is at least as old as the averaging time, or else the oldest
        available. It is also at least `oldest_gap_ns` old, so that a refresh right after a tick does not divide by
        almost zero. Snapshots taken before every hook worked are skipped once there is a later one.
        """
        with self._lock:
            last = self._frames.get(snapshot.lens)
            earlier = [] if last is None else [*self._earlier[snapshot.lens], last.now]
            earlier += filter(None, [self._precedents.pop(snapshot.lens, None)])
            earlier = [older for older in earlier if older.boot_ns >= snapshot.complete_since_ns] or earlier
            earlier = _drop_close(earlier, max(self._average_ns // _PIECES, oldest_gap_ns))
            least_ns = max(self._average_ns - oldest_gap_ns, oldest_gap_ns)
            old_enough = sum(snapshot.boot_ns - older.boot_ns >= least_ns for older in earlier)
            self._earlier[snapshot.lens] = earlier = earlier[max(0, old_enough - 1) :]
            batches = dict(self._batches.get(snapshot.lens, {}))
            self._frames[snapshot.lens] = Frame(snapshot, earlier[0] if earlier else None, batches)
            self._failures.pop(snapshot.lens, None)
        self._wake()

    def precede(self, snapshot: Snapshot) -> None:
        """Have the next snapshot of the lens compared with this one, which no reader receives."""
        with self._lock:
            self._precedents[snapshot.lens] = snapshot

    def average_over(self, seconds: float) -> None:
        """Average rates over this time from the next snapshot on; 0 means over each interval."""
        with self._lock:
            self._average_ns = round(seconds * 1e9)

    def append(self, lens: str, batches: tuple[Rows, ...]) -> None:
        """Add rows to append tables of `lens`: to feeds at once, to frames with the next snapshot."""
        with self._lock:
            kept = self._batches.setdefault(lens, {})
            for batch in batches:
                kept[batch.table.name] = _trim((*kept.get(batch.table.name, ()), batch))
            feeds = tuple(self._feeds)
        for batch in batches:
            for table, feed in feeds:
                if table == (lens, batch.table.name):
                    feed.put(batch)

    def feed(self, lens: str, table: str, wake: Wake) -> Feed:
        """Return a feed of every row added to an append table from now on; `wake` is called when rows arrive."""

        def close() -> None:
            with self._lock:
                self._feeds = [entry for entry in self._feeds if entry[1] is not feed]

        feed = Feed(wake, close)
        with self._lock:
            self._feeds.append(((lens, table), feed))
        return feed

    def fail(self, lens: str, error: NettopError) -> None:
        """Record why `lens` cannot be read, and wake the readers. Its traceback keeps no part of a reading."""
        for raised in filter(None, (error, error.__cause__)):
            traceback.clear_frames(raised.__traceback__)
        with self._lock:
            self._failures[lens] = error
        self._wake()

    def frame(self, lens: str) -> Frame | None:
        """Return the newest frame; None before the first snapshot."""
        with self._lock:
            return self._frames.get(lens)

    def failure(self, lens: str) -> NettopError | None:
        """Return why `lens` cannot be read; None while it can."""
        with self._lock:
            return self._failures.get(lens)

    def forget(self, lens: str) -> None:
        """Drop the frames of a detached lens."""
        with self._lock:
            self._frames.pop(lens, None)
            self._earlier.pop(lens, None)
            self._batches.pop(lens, None)

    def subscribe(self, wake: Wake) -> Callable[[], None]:
        """Call `wake` at each publication; return the function that unsubscribes."""
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


def _drop_close(snapshots: list[Snapshot], spacing_ns: int) -> list[Snapshot]:
    """Drop the last snapshot but one if it follows too closely on its predecessor. The oldest is first."""
    is_close = len(snapshots) > 2 and snapshots[-2].boot_ns - snapshots[-3].boot_ns < spacing_ns
    return [*snapshots[:-2], snapshots[-1]] if is_close else snapshots


def _trim(batches: tuple[Rows, ...]) -> tuple[Rows, ...]:
    """Drop old batches that no view shows, and concatenate the newest two if they are small."""
    kept, rows = [batches[-1]], len(batches[-1])
    for batch in reversed(batches[:-1]):
        if rows >= batches[-1].table.kept_rows:
            break
        rows += len(batch)
        kept.append(batch)
    if len(kept) > 1 and len(kept[0]) + len(kept[1]) <= _PIECE_ROWS:
        kept[:2] = [concatenate_batches(kept[0].table, kept[1::-1])]
    return tuple(reversed(kept))
