# SPDX-License-Identifier: Apache-2.0
"""A replay: the moment of a recording that is shown, and the sources that show it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from nettop.query.found import listed
from nettop.recording.marks import FAILURES
from nettop.recording.numbers import Damaged
from nettop.recording.reader import Reading, Readings
from nettop.recording.recording import Recording
from nettop.settings import MIN_INTERVAL_S
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.findings import SEVERITY_CODES
from nettop.snapshots.schema import Lens, Severity
from nettop.snapshots.snapshot import RECORDER, RECORDING, Frame, Rows, Snapshot
from nettop.snapshots.source import SourceOptions

_NO_FINDINGS = (FAILURES, SEVERITY_CODES[Severity.HINT])
"""Severities of times that `next_finding` goes over."""


class Player:
    """The moment that is shown: it moves with the clock, `speed` times as fast, unless paused or at the end.

    With `repeats`, the beginning follows the end.
    """

    speeds = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0)

    def __init__(
        self, recording: Recording, clock: Callable[[], float] = time.monotonic, *, repeats: bool = False
    ) -> None:
        self.recording = recording
        self._repeats = repeats
        self._clock = clock
        self._lock = threading.Lock()
        self._speed = 1.0
        self._paused = False
        self._from_ns = recording.begin_ns
        self._since = clock()

    @property
    def wall_ns(self) -> int:
        """The moment that is shown, by the wall clock of the recording."""
        with self._lock:
            return self._now()

    def _now(self) -> int:
        passed_s = 0.0 if self._paused else self._clock() - self._since
        begin_ns, end_ns = self.recording.begin_ns, self.recording.end_ns
        now_ns = self._from_ns + round(passed_s * self._speed * 1e9)
        if self._repeats and now_ns > end_ns:
            now_ns = begin_ns + (now_ns - begin_ns) % max(1, end_ns - begin_ns)
        return min(now_ns, max(self._from_ns, end_ns))

    @property
    def speed(self) -> float:
        """How many seconds are shown in one."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        with self._lock:
            self._move(self._now())
            self._speed = speed

    @property
    def interval_s(self) -> float:
        """How often there is another reading at this speed."""
        return max(MIN_INTERVAL_S, self.recording.groups[0].group.interval_s / max(1.0, self._speed))

    @property
    def is_paused(self) -> bool:
        """True if the moment does not move."""
        return self._paused

    @is_paused.setter
    def is_paused(self, paused: bool) -> None:
        with self._lock:
            self._move(self._now())
            self._paused = paused

    @property
    def is_at_end(self) -> bool:
        """True once everything has been shown, and no more is coming."""
        return self.recording.is_over and self.wall_ns >= self.recording.end_ns

    def jump(self, wall_ns: int) -> None:
        """Show another moment; before the beginning or after the end, the nearest one."""
        with self._lock:
            self._move(max(self.recording.begin_ns, min(wall_ns, self.recording.end_ns)))

    def step(self, lens: Lens, readings: int) -> bool:
        """Pause, and show the next (1) or the last (−1) reading of a lens; return whether there is one."""
        self.is_paused = True
        moment = self._after(lens) if readings > 0 else self._before(lens)
        if moment is not None:
            self.jump(moment)
        return moment is not None

    def next_finding(self) -> int | None:
        """Return when the next finding was first seen, None if there is none up to the end. Others may last already.
        Hints do not count."""
        now_ns = self.wall_ns
        for mark in self.recording.marks:
            if mark.severity in _NO_FINDINGS or mark.end_ns <= now_ns:
                continue
            moment = self._next_new(max(now_ns, mark.begin_ns - 1), mark.end_ns)
            if moment is not None:
                return moment
        return None

    def _next_new(self, begin_ns: int, end_ns: int) -> int | None:
        """Return when a finding began after one moment and up to another, None if none did."""
        recording, found = self.recording, set[int]()
        readings = Readings(recording, FINDINGS)
        with suppress(Damaged):
            reading = readings.at(begin_ns)
            found = set() if readings.pause_before(begin_ns) else _found_in(reading)
        for moment, reading in readings.each(recording.moments_between(FINDINGS, begin_ns + 1, end_ns)):
            before, found = found, _found_in(reading)
            if not found <= before:
                return moment
        return None

    def next_match(self, lens: Lens, has_rows: Callable[[Frame], bool]) -> int | None:
        """Return when a lens was next read with rows that are wanted, None if there is none up to the end."""
        recording, now_ns = self.recording, self.wall_ns
        readings = Readings(recording, lens)
        moments = recording.moments_between(lens, now_ns + 1, recording.end_ns)
        return next(
            (at for at, reading in readings.each(moments) if has_rows(Frame(reading.now, reading.before))),
            None,
        )

    def go_to_first(self, lens: Lens) -> None:
        """Go on to the first reading of a lens if there is none up to this moment, to the next one if this moment is
        damaged, or the lens was not recorded then. Raise Unsupported without any, and Damaged or UsageError without a
        next one."""
        recording = self.recording
        while recording.expects(lens) and recording.wait_for_more():
            recording.refresh()
        first = recording.first_moment(lens, recording.begin_ns)
        if first > self.wall_ns:
            self.jump(first)
        readings = Readings(recording, lens)
        readings.at(self.wall_ns)
        if damage := readings.damage_before(self.wall_ns):
            following = self._after(lens)
            if following is None:
                raise Damaged(damage)
            self.jump(following)
        elif readings.pause_before(self.wall_ns):
            self.jump(recording.first_moment(lens, self.wall_ns))

    def _move(self, wall_ns: int) -> None:
        self._from_ns, self._since = wall_ns, self._clock()

    def _after(self, lens: Lens) -> int | None:
        """Return when a lens was read next; None if it was not."""
        return next(self.recording.moments_between(lens, self.wall_ns + 1, self.recording.end_ns), None)

    def _before(self, lens: Lens) -> int | None:
        """Return when a lens was read before the reading that is shown, or before now if none is; None if it was
        not."""
        now_ns = self.wall_ns
        moments = self.recording.moments_before(lens, now_ns)
        last = next(moments, None)
        return next(moments, None) if last == now_ns or self._shows_reading(lens, now_ns) else last

    def _shows_reading(self, lens: Lens, wall_ns: int) -> bool:
        """Return whether there is a reading to show: not where nobody recorded, or where the recording is damaged."""
        readings = Readings(self.recording, lens)
        with suppress(Damaged):
            readings.at(wall_ns)
            return not (readings.pause_before(wall_ns) or readings.damage_before(wall_ns))
        return False


def _found_in(reading: Reading | None) -> set[int]:
    """Return the ids of the findings in a reading, without hints and those that others explain."""
    rows = [] if reading is None else listed(Frame(reading.now))
    return {row["id"] for row in rows if row["severity"] != Severity.HINT.value}


class RecordedSource:
    """The source of a recorded lens; see nettop.snapshots.source.ReplayingSource."""

    def __init__(self, player: Player, lens: Lens) -> None:
        self._player = player
        self._lens = lens
        self._readings = Readings(player.recording, lens)
        self._shown: Reading | None = None
        self._events: tuple[Rows, ...] = ()
        self._leap: tuple[bool, Snapshot | None] = (False, None)

    def configure(self, options: SourceOptions) -> None:
        """Ignore the options: what was recorded is there."""

    def start(self) -> None:
        """Raise Unsupported if the lens was not recorded."""
        recording = self._player.recording
        if self._lens.id not in recording.lenses:
            raise recording.refusal(self._lens)

    def read(self, taken_ns: int) -> Snapshot:  # noqa: ARG002 - the recording has its own clock
        """Return the reading at the moment that is shown; an empty one without any so far, where the recording is
        damaged, and where the lens was not recorded, as it says then."""
        self._player.recording.refresh()
        wall_ns, reading, pause = self._player.wall_ns, None, ""
        try:
            reading = self._readings.at(wall_ns)
            damage = self._readings.damage_before(wall_ns)
            pause = self._readings.pause_before(wall_ns)
        except Damaged as error:
            damage = str(error)
        if reading is None or damage or pause:
            self._shown = None
            gaps = {RECORDING: damage} if damage else {RECORDER: pause} if pause else {}
            return Snapshot(self._lens.id, wall_ns, 0, {}, gaps=gaps)
        if self._shown is None or reading.now is not self._shown.now:
            is_adjacent = self._shown is not None and reading.before is self._shown.now
            self._leap = not reading.is_next, None if is_adjacent else reading.before
            self._shown, self._events = reading, reading.events
        return reading.now

    def leap(self) -> tuple[bool, Snapshot | None]:
        """Return whether the last reading does not follow the one before, and what precedes it unless that was read."""
        return self._leap

    def wakeups(self) -> tuple[int, ...]:
        """Return no descriptors: events come with the readings."""
        return ()

    def is_filling(self) -> bool:
        """Return False: nothing fills up."""
        return False

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:  # noqa: ARG002 - they were taken when they were recorded
        """Return the events up to the last reading."""
        events, self._events = self._events, ()
        return events

    def describe(self, key: int) -> dict[str, str]:  # noqa: ARG002 - there is nothing of any row
        """Return nothing: such details are read from the running kernel."""
        return {}

    def close(self) -> None:
        """Do nothing: the recording belongs to the player."""
