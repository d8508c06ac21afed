# SPDX-License-Identifier: Apache-2.0
"""A source that notes what the engine calls, and does then what a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from itertools import count

from nettop.snapshots.snapshot import Rows, Snapshot
from nettop.snapshots.source import SourceOptions


class Source:
    """A source of snapshots without tables. It calls the functions `on`, by the name of its method, before it does what
    the method is for."""

    def __init__(self, lens: str = "connections", **on: Callable[[], object]) -> None:
        self.lens, self.on = lens, on
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.options: SourceOptions | None = None
        self.joined: list[list[str]] = []
        self.skipped: list[int] = []
        self.read_once = threading.Event()

    def start(self) -> None:
        """Note the call."""
        self._note("start")

    def read(self, taken_ns: int) -> Snapshot:
        """Return a snapshot of its lens that holds nothing but its time."""
        self.read_once.set()
        self._note("read")
        return Snapshot(self.lens, taken_ns, taken_ns, {})

    def configure(self, options: SourceOptions) -> None:
        """Store the options."""
        self._note("configure")
        self.options = options

    def describe(self, key: int) -> dict[str, str]:
        """Return the requested key."""
        self._note("describe")
        return {"Key": str(key)}

    def close(self) -> None:
        """Note the call."""
        self._note("close")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())
        self._do(call)

    def _do(self, call: str) -> None:
        if call in self.on:
            self.on[call]()

    # --- what only some sources have ------------------------------------------------------------------------

    def join(self, frames: Mapping[str, object]) -> None:
        """Note the lenses whose frames it gets."""
        self.joined.append(list(frames))
        self._do("join")

    def note_skipped(self, readings: int) -> None:
        """Note the number."""
        self.skipped.append(readings)

    def wakeups(self) -> tuple[int, ...]:
        """Return none: nothing wakes it."""
        return ()

    def is_filling(self) -> bool:
        """Return False: nothing fills up."""
        return False

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:
        """Return no rows."""
        self._do("drain")
        return ()


def failing(method: str, when: Callable[[int], bool], error: Exception) -> Source:
    """Return a source of which some calls of a method fail: those whose numbers, from 0, are in `when`."""
    numbers = count()

    def fail() -> None:
        if when(next(numbers)):
            raise error

    return Source(**{method: fail})
