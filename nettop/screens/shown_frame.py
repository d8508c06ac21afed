# SPDX-License-Identifier: Apache-2.0
"""The frame that a table's screen shows, its age, and why there is none."""

from __future__ import annotations

from collections.abc import Sequence

from nettop.errors import NettopError
from nettop.screens.context import Frozen, ScreenContext
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.snapshot import RECORDER, RECORDING, Frame, Snapshot
from nettop.widgets.text import TextSpan
from nettop.widgets.themes import Role

_LATE_INTERVALS = 2
"""A reading that so many intervals passed since shows its age."""

Notice = Sequence[TextSpan]


class ShownFrame:
    """The newest frame of a lens, or the frozen one. `frame` is the one that the screen has drawn, since `came_at`.

    `refresh_once` lets the next frame pass even while the lens is frozen.
    """

    def __init__(self, context: ScreenContext, lens: Lens, table: Table) -> None:
        self.frame: Frame | None = None
        self.came_at = 0.0
        self.refresh_once = False
        self.is_attaching = False
        self._attaching_since = 0.0
        self._context, self._lens, self._table = context, lens, table
        self._state = context.lens_state(lens)

    def choose(self) -> tuple[Frame | None, Notice]:
        """Return the frame to show; or None, and what the screen says instead."""
        bus = self._context.session.bus
        frame, failure = bus.frame(self._lens.id), bus.failure(self._lens.id)
        if self.frozen is not None and not self.refresh_once:
            frame, failure = self.frozen.frame, None
        if failure is not None:
            self.is_attaching = False
            return None, _failure_notice(failure)
        if frame is not None and not frame.now.tables and self._context.player is not None:
            self.is_attaching, self.frame = False, None
            return None, _gap_notice(self._lens.title, frame.now)
        if frame is None or not self.has_table(frame):
            return None, self._attaching_notice()
        return frame, ()

    def take(self, frame: Frame) -> None:
        """Record that a new frame is drawn; while the lens is frozen, it stays at this one."""
        self.frame, self.is_attaching, self.came_at = frame, False, self._context.clock()
        if self.refresh_once and self.frozen is not None:
            self._state.frozen = Frozen(frame, self._context.clock())
        self.refresh_once = False

    def freeze(self) -> None:
        """Freeze the lens at this frame, or resume."""
        is_frozen, frame = self.frozen is not None, self.frame
        self._state.frozen = None if is_frozen or frame is None else Frozen(frame, self._context.clock())

    def has_table(self, frame: Frame) -> bool:
        """Return False while the source has not read the table: it reads some only once they are shown."""
        unavailable = frame.now.why_unavailable(self._table) is not None
        return self._table.append or self._table.name in frame.now.tables or unavailable

    @property
    def frozen(self) -> Frozen | None:
        """The frozen frame, if it includes this table; None while the newest frame is shown."""
        frozen = self._state.frozen
        return frozen if frozen is not None and self.has_table(frozen.frame) else None

    @property
    def frozen_s(self) -> float | None:
        """Seconds since the lens was frozen; None if it is not."""
        return None if self.frozen is None else self._context.clock() - self.frozen.at

    @property
    def late_s(self) -> float | None:
        """Age of the newest reading if there should have been others since; None if not."""
        age_s = self._context.clock() - self.came_at
        is_late = age_s > _LATE_INTERVALS * self._context.session.interval_s
        return age_s if is_late and self.frame is not None and self._context.player is None else None

    def _attaching_notice(self) -> Notice:
        if not self.is_attaching:
            self.is_attaching, self._attaching_since = True, self._context.clock()
        seconds = int(self._context.clock() - self._attaching_since)
        passed = f" {seconds} s" if seconds else ""
        return [TextSpan(f"{self._lens.title}: attaching …{passed}", Role.DIM)]


def _failure_notice(failure: NettopError) -> Notice:
    by_itself = "nettop tries again by itself; " if failure.is_retried else ""
    again = TextSpan(f"{by_itself}Enter tries again", Role.DIM)
    return [TextSpan(failure.what, Role.BAD), TextSpan(failure.remedy), again]


def _gap_notice(title: str, now: Snapshot) -> Notice:
    """Say why a recording has no reading at this moment."""
    if damage := now.gaps.get(RECORDING):
        return [TextSpan(f"the recording is damaged here: {damage}", Role.BAD), TextSpan(". goes over it")]
    if pause := now.gaps.get(RECORDER):
        return [TextSpan(f"{title}: not recorded {pause}"), TextSpan(". goes over it")]
    return [TextSpan(f"{title}: not read before this moment", Role.DIM)]
