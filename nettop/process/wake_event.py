# SPDX-License-Identifier: Apache-2.0
"""An event that threads and signal handlers set, on which the sampler and consumers wait, together with descriptors."""

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
    """An event that any thread and signal handlers may set. It is a context manager; outside it `set` is a no-op.

    If entered in the main thread, it is also set by every signal that Python handles: a signal right before poll(2)
    does not interrupt it, and its handler would run only after the wait.
    """

    def __init__(self) -> None:
        # Reentrant, because a signal handler may set the event while the main thread does.
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
        # The sampler may be about to set it, and the descriptor numbers may soon be reused.
        with self._lock:
            os.close(self._reader)
            os.close(self._writer)
            self._reader = self._writer = -1

    def set(self) -> None:
        """End the wait, or make the next one end at once."""
        with self._lock, suppress(BlockingIOError):  # a full pipe means it is set
            if self._writer >= 0:
                os.write(self._writer, b"\0")

    def wait(self, others: Mapping[int, int] | None = None, timeout_s: float | None = None) -> dict[int, int]:
        """Wait until the event is set, one of the `others` is ready, or the timeout.

        `others` maps descriptors to poll(2) events. Return the ready ones with their events.
        """
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        for descriptor, events in (others or {}).items():
            poll.register(descriptor, events)
        ready = dict(poll.poll(None if timeout_s is None else max(0, math.ceil(timeout_s * 1000))))
        if ready.pop(self._reader, 0):
            os.read(self._reader, 1 << 16)
        return ready
