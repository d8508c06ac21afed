# SPDX-License-Identifier: Apache-2.0
"""What all screens share: the session, what was asked for, and the facts of the first line."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nettop.engine.session import Session
from nettop.query.view import Names
from nettop.settings import MAX_INTERVAL_S, MIN_INTERVAL_S, Settings
from nettop.snapshots import lenses
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Lens

Clock = Callable[[], float]
Cost = Callable[[], "float | None"]

INTERVALS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_COST_GAP_S = 0.5


class CostMeter:
    """Gives the share of one CPU that this process and its finished children used lately, 0 to n."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._used = _cpu_seconds()
        self._last: float | None = None

    def __call__(self) -> float | None:
        """The share since the last call; None before there was time to measure."""
        now, used = self._clock(), _cpu_seconds()
        if now - self._at >= _COST_GAP_S:
            self._last = (used - self._used) / (now - self._at)
            self._at, self._used = now, used
        return self._last


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclass
class Desk:
    """What every screen works with. Tests put their own host, clock and cost here."""

    settings: Settings
    session: Session
    lenses: tuple[Lens, ...] = field(default_factory=lenses)
    host: str = field(default_factory=lambda: safe_text(socket.gethostname()))
    clock: Clock = time.monotonic
    cost: Cost = field(default_factory=CostMeter)
    interval_s: float = 0.0

    names: Names | None = None
    """Names of addresses, where --resolve asks for them; one that is found later is there at the next refresh."""

    def __post_init__(self) -> None:
        self.interval_s = self.session.interval_s
        if self.settings.view.resolve and self.names is None:
            from nettop.engine.resolver import Resolver  # few ask for it

            self.names = Resolver()

    def change_interval(self, step: int) -> None:
        """The next longer (`step` 1) or shorter (−1) of the usual intervals."""
        now = self.interval_s
        others = [s for s in INTERVALS_S if (s > now if step > 0 else s < now)]
        if others:
            wanted = min(others) if step > 0 else max(others)
            self.interval_s = min(max(wanted, MIN_INTERVAL_S), MAX_INTERVAL_S)
            self.session.set_interval(self.interval_s)
