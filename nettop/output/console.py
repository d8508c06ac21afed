# SPDX-License-Identifier: Apache-2.0
"""Standard output that never blocks the writer on a slow reader."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable

from nettop.output.log_files import LossCount, LostLine
from nettop.writing import end_of_piece, has_room

QUEUED_BYTES = 8 << 20
"""Bytes queued for a slow reader before lines are dropped."""
_WAIT_S = 0.1
_END_WAIT_S = 2.0
"""Seconds that closing waits for a stalled reader."""


class Console:
    """A queue of blocks of lines, and the thread that writes them in order.

    If the reader is too slow, the console drops and counts blocks; once there is room, it writes the line
    `lost_line(cause, count, total)`. `gone` is set once the reader has closed the pipe or terminal,
    `error` on any other write error. Both call `wake`.
    """

    def __init__(self, descriptor: int, wake: Callable[[], None], lost_line: LostLine) -> None:
        self.lost = LossCount()
        self.gone = False
        self.error: OSError | None = None
        self.descriptor = descriptor
        self._wake = wake
        self._lost_line = lost_line
        self._blocks: deque[bytes] = deque()
        self._rest, self._done = b"", 0
        self._waiting = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def write(self, block: bytes) -> None:
        """Queue the lines, or drop them if the queue is full."""
        with self._changed:
            if self._waiting >= QUEUED_BYTES:
                self.lost.add(block)
            else:
                self._put_gap()
                self._put(block)

    def wait(self, given_up: Callable[[], bool]) -> None:
        """Sleep until there is room, the reader is gone, writing failed, or `given_up` returns true."""
        with self._changed:
            while self._waiting >= QUEUED_BYTES and not (self.gone or self.error or given_up()):
                self._changed.wait(_WAIT_S)

    def close(self) -> None:
        """Flush the queue; drop the rest if the reader has stalled."""
        with self._changed:
            self._put_gap()
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_END_WAIT_S)
        with self._changed:
            for block in (self._rest if self._done < len(self._rest) else b"", *self._blocks):
                self.lost.add(block)
            self._blocks.clear()

    def _put(self, block: bytes) -> None:
        self._blocks.append(block)
        self._waiting += len(block)
        self._changed.notify_all()

    def _put_gap(self) -> None:
        if self.lost.gap:
            self._put(self._lost_line("console too slow", self.lost.gap, self.lost.total))
            self.lost.gap = 0

    # --- in the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take():
                while self._done < len(self._rest):
                    end = end_of_piece(self._rest, self._done)
                    try:
                        self._done += os.write(self.descriptor, self._rest[self._done : end])
                    except BlockingIOError:  # another process that shares it has made it non-blocking
                        has_room(self.descriptor, None)
        except OSError as error:
            with self._changed:
                if error.errno in (errno.EPIPE, errno.EIO):  # EIO: a terminal that has hung up
                    self.gone = True
                else:
                    self.error = error
                self._changed.notify_all()
            self._wake()

    def _take(self) -> bool:
        """Sleep until there is a block to write; return False once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._closing)
            if not self._blocks:
                return False
            self._rest, self._done = self._blocks.popleft(), 0
            self._waiting -= len(self._rest)
            self._changed.notify_all()
            return True
