# SPDX-License-Identifier: Apache-2.0
"""What the sampler and the consumers wait for: an event that threads and signal handlers set, and descriptors."""

from __future__ import annotations

import math
import os
import select
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self


class WakeEvent:
    """An event that may be set from any thread and from signal handlers. Used as a context; outside it `set` does
    nothing.

    Entered in the main thread, it is also set by every signal that Python handles: one that arrives right before
    poll(2) does not interrupt that, and its handler would run when the wait is over.
    """

    def __init__(self) -> None:
        # A signal handler may set it while the main thread does, so the lock may be taken twice.
        self._lock = threading.RLock()
        self._reader = self._writer = -1
        self._replaced: int | None = None

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if threading.current_thread() is threading.main_thread():
            self._replaced = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._replaced is not None:
            signal.set_wakeup_fd(self._replaced)
        # The sampler may be about to set it, and the descriptors' numbers may soon be other files'.
        with self._lock:
            os.close(self._reader)
            os.close(self._writer)
            self._reader = self._writer = -1

    def set(self) -> None:
        """End the wait, or have the next one end at once."""
        with self._lock, suppress(BlockingIOError):  # full: it is set
            if self._writer >= 0:
                os.write(self._writer, b"\0")

    def wait(self, others: Mapping[int, int] | None = None, timeout_s: float | None = None) -> dict[int, int]:
        """Wait until it is set, or one of the `others` is ready, or the time is up.

        `others` are descriptors with the events of poll(2) to wait for; returns those that are ready, with theirs.
        """
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        for descriptor, events in (others or {}).items():
            poll.register(descriptor, events)
        ready = dict(poll.poll(None if timeout_s is None else max(0, math.ceil(timeout_s * 1000))))
        if ready.pop(self._reader, 0):
            os.read(self._reader, 1 << 16)
        return ready
