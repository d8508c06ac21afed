# SPDX-License-Identifier: Apache-2.0
"""What the sampler and the doors sleep on: a bell that other threads and signals ring, and descriptors."""

from __future__ import annotations

import math
import os
import select
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self


class WakeEvent:
    """Rung from any thread and from signal handlers. Used as a context."""

    def __init__(self) -> None:
        # A signal's handler may ring while the main thread is inside: the lock may be taken twice.
        self._lock = threading.RLock()
        self.descriptor = -1

    def __enter__(self) -> Self:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        # The sampler may be about to ring: its write must not meet another file's descriptor.
        with self._lock:
            os.close(self.descriptor)
            self.descriptor = -1

    def ring(self) -> None:
        """End the sleep, or have the next one end at once."""
        with self._lock:
            if self.descriptor >= 0:
                os.eventfd_write(self.descriptor, 1)

    def silence(self) -> None:
        """Forget that it was rung."""
        os.eventfd_read(self.descriptor)

    def wait(self, others: Mapping[int, int] | None = None, timeout_s: float | None = None) -> dict[int, int]:
        """Sleep until it is rung, or one of the `others` is ready, or the time is up.

        `others` are descriptors with the events of poll(2) to wait for; what comes back is theirs.
        """
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        for descriptor, events in (others or {}).items():
            poll.register(descriptor, events)
        ready = dict(poll.poll(None if timeout_s is None else max(0, math.ceil(timeout_s * 1000))))
        if ready.pop(self.descriptor, 0):
            self.silence()
        return ready
