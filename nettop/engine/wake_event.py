# SPDX-License-Identifier: Apache-2.0
"""What the sampler and the consumers wait for: an event that threads and signal handlers set, and descriptors."""

from __future__ import annotations

import math
import os
import select
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self


class WakeEvent:
    """An event that may be set from any thread and from signal handlers. Used as a context; outside it `set` does
    nothing."""

    def __init__(self) -> None:
        # A signal handler may set it while the main thread does, so the lock may be taken twice.
        self._lock = threading.RLock()
        self.descriptor = -1

    def __enter__(self) -> Self:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        # The sampler may be about to set it, and the descriptor's number may soon be another file's.
        with self._lock:
            os.close(self.descriptor)
            self.descriptor = -1

    def set(self) -> None:
        """End the wait, or have the next one end at once."""
        with self._lock:
            if self.descriptor >= 0:
                os.eventfd_write(self.descriptor, 1)

    def clear(self) -> None:
        """Forget that it was set."""
        os.eventfd_read(self.descriptor)

    def wait(self, others: Mapping[int, int] | None = None, timeout_s: float | None = None) -> dict[int, int]:
        """Wait until it is set, or one of the `others` is ready, or the time is up.

        `others` are descriptors with the events of poll(2) to wait for; returns those that are ready, with theirs.
        """
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        for descriptor, events in (others or {}).items():
            poll.register(descriptor, events)
        ready = dict(poll.poll(None if timeout_s is None else max(0, math.ceil(timeout_s * 1000))))
        if ready.pop(self.descriptor, 0):
            self.clear()
        return ready
