# SPDX-License-Identifier: Apache-2.0
"""Other hosts, on which nettop records for this one while their lenses are in use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from nettop.errors import SourceFailed
from nettop.hosts.stream import HostStream, why_ended
from nettop.process.clocks import monotonic_s
from nettop.recording.numbers import Damaged
from nettop.recording.reader import Reading
from nettop.snapshots import lenses_of_one_host
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.hosts import HOSTS_LENS
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.snapshot import Rows

BASIC = (CONNECTIONS.id, FINDINGS.id)
"""What the screens of several hosts always use."""
_CHECK_S = 0.2
"""Seconds between two checks of whether a command has ended."""
_RETRY_S = (1.0, 2.0, 5.0, 10.0)
"""Seconds before a lost host is tried again, each time longer."""
LATE_AFTER_S = 5.0
"""Seconds, or three intervals if they are longer, without a reading after which a host counts as lost."""
_ATTACHING_S = 60.0
"""Seconds that a host may take until its first reading: to log in, and to compile programs."""
_SAME_VERSION = "use the same version of nettop there, and a login that prints nothing"

Start = Callable[[str, Sequence[str]], Sequence[str]]
"""Function that returns the command that records the lenses with these ids on a host."""


@dataclass
class HostRecording:
    """The recording of some lenses on a host: made again after it was lost, as long as a lens is in use."""

    host: str
    lenses: tuple[str, ...]
    users: int = 0
    stream: HostStream | None = None
    cause: str = ""
    """Why there are no readings; empty while there are, and before the first try has failed."""
    remedy: str = ""
    lost_at: float | None = None
    """When the last reading was lost (CLOCK_MONOTONIC); None while there are some."""
    retry_at: float = 0.0
    tries: int = 0
    began_at: float = 0.0
    """When the command was started."""
    read_at: float = 0.0
    newest: dict[str, Reading] = field(default_factory=dict)
    events: dict[str, list[Rows]] = field(default_factory=dict)
    """What came with readings and was not taken yet, of the lenses whose events are taken."""

    def lose(self, cause: str, remedy: str, now: float) -> None:
        """Note why the host has no readings any more, and when to try again."""
        self.stream, self.cause, self.remedy = None, cause, remedy
        self.newest.clear()
        self.retry_at = now + _RETRY_S[min(self.tries, len(_RETRY_S) - 1)]
        self.tries += 1
        if self.lost_at is None:
            self.lost_at = now

    def forget(self) -> None:
        """Forget that the host was lost while the lenses were in use before."""
        self.cause, self.remedy, self.lost_at, self.retry_at, self.tries = "", "", None, 0.0, 0


class Hosts:
    """The hosts, used as a context manager. Its thread starts the commands, and notices when they end.

    `together` are lenses that one command records: findings are about what is recorded beside them.
    """

    def __init__(
        self,
        names: Sequence[str],
        start: Start,
        interval_s: float,
        clock: Callable[[], float] = monotonic_s,
        together: tuple[str, ...] = BASIC,
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.interval_s = interval_s
        self.clock = clock
        self._start = start
        self._together = together
        self._late_after_s = max(LATE_AFTER_S, 3 * interval_s)
        self._lock = threading.Lock()
        self._links: dict[tuple[str, tuple[str, ...]], HostRecording] = {}
        self._changed = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="hosts", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._changed.set()
        self._thread.join()

    def recorded_with(self, lens: str) -> tuple[str, ...]:
        """Return the lenses that one command records.

        Those of the findings are also recorded for the lens of the hosts, and beside nettop's own cost, which is this
        nettop's.
        """
        return self._together if lens in (*self._together, HOSTS_LENS.id, SELF.id) else (lens,)

    def use(self, lens: str, *, with_events: bool = False) -> None:
        """Have a lens recorded on every host; `with_events` by the one that will take its events."""
        with self._lock:
            for host in self.names:
                key = host, self.recorded_with(lens)
                link = self._links.setdefault(key, HostRecording(*key))
                if not link.users:
                    link.forget()
                link.users += 1
                if with_events:
                    link.events[lens] = []
        self._changed.set()

    def release(self, lens: str, *, with_events: bool = False) -> None:
        """End the recording of a lens that nobody uses any more, and the collection of its events."""
        with self._lock:
            for host in self.names:
                link = self._links[host, self.recorded_with(lens)]
                link.users -= 1
                if with_events:
                    link.events.pop(lens, None)
        self._changed.set()

    def newest(self, lens: str) -> dict[str, Reading]:
        """Return the newest reading of each host that has one; call it from one thread."""
        readings = {link.host: self._read(link, lens) for link in self._links_of(lens)}
        return {host: reading for host, reading in readings.items() if reading is not None}

    def take_events(self, lens: str) -> dict[str, list[Rows]]:
        """Remove and return the events of each host that came with the readings so far."""
        taken = {}
        for link in self._links_of(lens):
            if lens in link.events:
                taken[link.host], link.events[lens] = link.events[lens], []
        return taken

    def lost(self, lens: str) -> dict[str, HostRecording]:
        """Return the hosts without readings of a lens that were lost, or could not be reached."""
        return {link.host: link for link in self._links_of(lens) if link.lost_at is not None}

    def failure(self, lens: str) -> SourceFailed | None:
        """Return the error if no host has readings of a lens, nor is being tried for the first time."""
        links = self._links_of(lens)
        if any(link.lost_at is None for link in links):
            return None
        causes = "; ".join(f"{link.host}: {link.cause}" for link in links)
        return SourceFailed(causes, links[0].remedy)

    def _links_of(self, lens: str) -> list[HostRecording]:
        with self._lock:
            links = (self._links.get((host, self.recorded_with(lens))) for host in self.names)
            return [link for link in links if link is not None and link.users]

    def _read(self, link: HostRecording, lens: str) -> Reading | None:
        """Return the newest reading of a lens there; None if there is none, or none that is recent."""
        stream, now = link.stream, self.clock()
        if stream is None:
            return None
        try:
            reading = stream.newest(lens)
        except Damaged as error:
            self._end_damaged(link, stream, f"what it sends is damaged: {error}", now)
            return None
        if stream.is_too_long:
            self._end_damaged(link, stream, "what it sends is no recording", now)
            return None
        with self._lock:  # the thread may notice at the same time that the command has ended
            return self._noted(link, stream, lens, reading, now) if link.stream is stream else None

    def _end_damaged(self, link: HostRecording, stream: HostStream, cause: str, now: float) -> None:
        with self._lock:
            if link.stream is stream:
                link.lose(cause, _SAME_VERSION, now)
        stream.end()

    def _noted(
        self, link: HostRecording, stream: HostStream, lens: str, reading: Reading | None, now: float
    ) -> Reading | None:
        """Note a stream's newest reading, or that it is late, and return what is recent."""
        last = link.newest.get(lens)
        if reading is not None and (last is None or reading.now is not last.now):
            link.newest[lens], link.read_at = reading, now
            if lens in link.events:
                link.events[lens] += reading.events
            link.lost_at, link.cause, link.tries = None, "", 0
            return reading
        if now - max(link.read_at, link.began_at) < (self._late_after_s if link.newest else _ATTACHING_S):
            return last
        if link.lost_at is None:
            link.cause, link.remedy = stream.failures.get(lens) or (
                (f"what it sends is no recording: {stream.damage}", _SAME_VERSION)
                if stream.damage
                else ("it sends no readings", "see whether it still answers")
            )
            link.lost_at = now
        return None

    # --- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ending:
            self._changed.clear()
            with self._lock:
                links = list(self._links.values())
            for link in links:
                self._maintain(link, self.clock())
            self._changed.wait(_CHECK_S)
        for stream in [link.stream for link in self._links.values() if link.stream is not None]:
            stream.end()

    def _maintain(self, link: HostRecording, now: float) -> None:
        """Start what is in use and does not run, end what is not, and note what has ended by itself."""
        stream = link.stream
        if stream is None:
            if link.users and now >= link.retry_at:
                self._begin(link, now)
        elif not link.users:
            link.stream = None
            link.newest.clear()
            stream.end()
        elif stream.exit_code is not None:
            with self._lock:
                link.lose(*why_ended(stream, link.host), now)
        elif cause := stream.said_too_much:
            self._end_damaged(link, stream, cause, now)

    def _begin(self, link: HostRecording, now: float) -> None:
        lenses = [lens for lens in lenses_of_one_host() if lens.id in link.lenses]
        try:
            link.began_at = now
            link.stream = HostStream(self._start(link.host, link.lenses), lenses)
        except OSError as error:
            with self._lock:
                link.lose(f"ssh cannot be started: {error.strerror}", "install an ssh client", now)
