# SPDX-License-Identifier: Apache-2.0
"""The one thread that reads sources, at absolute deadlines of the monotonic clock."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from nettop.engine.bus import Bus
from nettop.engine.source import Source
from nettop.errors import NettopError, SourceFailed

T = TypeVar("T")
DETACH_AFTER_S = 10.0
"""A lens that nobody holds stays attached this long: going to another screen and back costs nothing."""


@dataclass
class _Attached:
    source: Source
    leases: int = 1
    idle_since: float | None = None


class Sampler:
    """Starts, reads and closes sources, all in its own thread; what others ask of it wakes it."""

    def __init__(self, bus: Bus, interval_s: float, source_of: Callable[[str], Source]) -> None:
        self.interval_s = interval_s
        self.late = 0
        self._bus = bus
        self._source_of = source_of
        self._attached: dict[str, _Attached] = {}
        self._tasks: deque[Callable[[], None]] = deque()
        self._work = threading.Condition()
        self._now = False
        self._stopping = False
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    # --- asked by others ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read what is leased."""
        self._thread.start()

    def stop(self) -> None:
        """Close every source and end the thread."""
        with self._work:
            self._stopping = True
            self._work.notify()
        self._thread.join()

    def sample_now(self) -> None:
        """Read at once; the next regular deadline stays."""
        with self._work:
            self._now = True
            self._work.notify()

    def set_interval(self, interval_s: float) -> None:
        """Read every `interval_s` from now on."""
        self._post(lambda: setattr(self, "interval_s", interval_s))

    def lease(self, lens: str, options: Mapping[str, object]) -> None:
        """Attach the lens, or count one more who holds it, and set its options."""
        self._post(lambda: self._attach(lens, options))

    def release(self, lens: str) -> None:
        """Count one less who holds the lens."""
        self._post(lambda: self._let_go(lens))

    def ask(self, lens: str, question: Callable[[Source], T]) -> Future[T]:
        """Put `question` to the source of a lens, in the thread that owns it."""
        answer: Future[T] = Future()

        def put() -> None:
            attached = self._attached.get(lens)
            if attached is None:
                answer.set_exception(SourceFailed(f"lens {lens!r} is not attached"))
                return
            try:
                answer.set_result(question(attached.source))
            except NettopError as error:
                answer.set_exception(error)

        self._post(put)
        return answer

    def _post(self, task: Callable[[], None]) -> None:
        with self._work:
            self._tasks.append(task)
            self._work.notify()

    # --- in the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._deadline = time.monotonic() + self.interval_s
        while self._wait():
            self._run_tasks()
            self._detach_idle()
            if self._take_now() or time.monotonic() >= self._deadline:
                self._read_all()
            self._deadline = self._next_deadline()
        for lens in list(self._attached):
            self._detach(lens)

    def _wait(self) -> bool:
        """Sleep until the deadline or until there is work; False when it is time to stop."""
        with self._work:
            while not (self._stopping or self._now or self._tasks):
                remaining = self._deadline - time.monotonic()
                if remaining <= 0 or not self._work.wait(remaining):
                    break
            return not self._stopping

    def _run_tasks(self) -> None:
        while self._tasks:
            self._tasks.popleft()()

    def _take_now(self) -> bool:
        with self._work:
            now, self._now = self._now, False
            return now

    def _next_deadline(self) -> float:
        """The next tick that is still to come; those that have passed are skipped and counted."""
        now = time.monotonic()
        if now < self._deadline:
            return min(self._deadline, now + self.interval_s)
        missed = int((now - self._deadline) / self.interval_s)
        self.late += missed
        return self._deadline + (missed + 1) * self.interval_s

    def _attach(self, lens: str, options: Mapping[str, object]) -> None:
        attached = self._attached.get(lens)
        if attached is not None:
            attached.leases += 1
            attached.idle_since = None
            self._set(lens, options)
            return
        try:
            source = self._source_of(lens)
        except NettopError as error:
            self._bus.fail(lens, error)
            return
        self._attached[lens] = _Attached(source)
        self._try(lens, source.start)
        self._set(lens, options)
        self._read(lens)
        # To attach may take as long as an interval: the next reading is due a whole one after the first.
        self._deadline = time.monotonic() + self.interval_s

    def _set(self, lens: str, options: Mapping[str, object]) -> None:
        attached = self._attached.get(lens)
        if attached is None:
            return
        for option, value in options.items():
            attached.source.set(option, value)

    def _let_go(self, lens: str) -> None:
        attached = self._attached.get(lens)
        if attached is None:
            return
        attached.leases -= 1
        if attached.leases == 0:
            attached.idle_since = time.monotonic()

    def _detach_idle(self) -> None:
        now = time.monotonic()
        for lens, attached in list(self._attached.items()):
            if attached.idle_since is not None and now - attached.idle_since >= DETACH_AFTER_S:
                self._detach(lens)
                self._bus.forget(lens)

    def _detach(self, lens: str) -> None:
        self._attached.pop(lens).source.close()

    def _read_all(self) -> None:
        for lens in list(self._attached):
            self._read(lens)

    def _read(self, lens: str) -> None:
        attached = self._attached.get(lens)
        if attached is None:
            return
        snapshot = self._try(lens, lambda: attached.source.read(time.monotonic_ns()))
        if snapshot is not None:
            self._bus.publish(snapshot, int(self.interval_s * 0.5e9))

    def _try(self, lens: str, step: Callable[[], T]) -> T | None:
        """What `step` gives. Where it fails the lens detaches, and the bus says why."""
        try:
            return step()
        except NettopError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - the thread's border: the other lenses go on
            failure = SourceFailed(f"the {lens} source failed: {error!r}", "please report this as a bug")
            failure.__cause__ = error
        self._detach(lens)
        self._bus.fail(lens, failure)
        return None
