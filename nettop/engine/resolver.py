# SPDX-License-Identifier: Apache-2.0
"""Reverse DNS lookups in the background."""

from __future__ import annotations

import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from queue import SimpleQueue

from nettop.query.address import address_text
from nettop.snapshots.safe_text import safe_text

CAPACITY = 16384
"""Maximum names cached; the least recently used are evicted."""
PENDING = 4096
"""Maximum pending lookups; one that does not fit is requested again when the address is shown next."""
WORKERS = 8
_MAX_NAME_LENGTH = 253
"""Maximum length of a DNS name."""
_UNSPECIFIED = (bytes(16), bytes(10) + b"\xff\xff" + bytes(4))
"""The unspecified addresses, which have no name."""


def look_up(raw: bytes) -> str | None:
    """Look up a 16-byte address with the system's resolver; None if it has no name. Blocks."""
    if raw in _UNSPECIFIED:
        return None
    try:
        # Not getnameinfo(), which holds the GIL while it waits (CPython 3.11.2): everything would stop.
        return socket.gethostbyaddr(address_text(raw))[0]
    except (OSError, UnicodeError):
        return None


class Resolver:
    """A cache of address names, which looks up missing ones in the background.

    Names are safe to show, and single words. Negative answers are cached too.
    """

    def __init__(self, find: Callable[[bytes], str | None] = look_up) -> None:
        self._find = find
        self._names: OrderedDict[bytes, str | None] = OrderedDict()
        self._pending: set[bytes] = set()
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._found = threading.Condition()
        self._workers = 0

    def __call__(self, raw: bytes) -> str | None:
        """Return the name of an address, None while it is unknown, without blocking."""
        with self._found:
            if raw in self._names:
                self._names.move_to_end(raw)
                return self._names[raw]
            self._request(raw)
            return None

    def wait(self, raws: Iterable[bytes], timeout_s: float) -> None:
        """Wait until all these addresses have been looked up, at most `timeout_s` seconds."""
        missing = deque(raws)

        def are_found() -> bool:
            while missing and missing[0] in self._names:
                missing.popleft()
            for raw in islice(missing, PENDING):
                self._request(raw)
            return not missing

        with self._found:
            self._found.wait_for(are_found, timeout_s)

    def _request(self, raw: bytes) -> None:
        """Queue a lookup, and start another worker if there are few. Call it with the lock held."""
        if raw in self._pending or raw in self._names or len(self._pending) >= PENDING:
            return
        self._pending.add(raw)
        self._queue.put(raw)
        if self._workers < WORKERS:
            self._workers += 1
            threading.Thread(target=self._run, name="resolver", daemon=True).start()

    def _run(self) -> None:
        while True:
            raw = self._queue.get()
            name = self._find(raw)
            is_word = name and name.split() == [name]
            with self._found:
                self._names[raw] = safe_text(name[:_MAX_NAME_LENGTH]) if name and is_word else None
                self._pending.discard(raw)
                if len(self._names) > CAPACITY:
                    self._names.popitem(last=False)
                self._found.notify_all()
