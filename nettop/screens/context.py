# SPDX-License-Identifier: Apache-2.0
"""What all screens share: the session, what was asked for, and the facts of the first line."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nettop.engine.session import Session
from nettop.query.view import Names
from nettop.settings import MAX_INTERVAL_S, MIN_INTERVAL_S, Settings
from nettop.snapshots import lenses
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Lens, Option, Table

Clock = Callable[[], float]
Cost = Callable[[], "float | None"]

INTERVALS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Place(NamedTuple):
    """What one screen shows: a table of a lens."""

    lens: Lens
    table: Table

    @property
    def word(self) -> str:
        """What --view calls it."""
        is_main = self.table.name == self.lens.main.name
        return self.lens.id if is_main else f"{self.lens.id}.{self.table.name}"

    def beside(self, step: int) -> Place:
        """The table `step` further on in the same lens; behind the last one comes the first."""
        tables = self.lens.tables
        return Place(self.lens, tables[(tables.index(self.table) + step) % len(tables)])


@dataclass
class ScreenContext:
    """What every screen works with. Tests put their own host, clock and cost here."""

    settings: Settings
    session: Session
    lenses: tuple[Lens, ...] = field(default_factory=lenses)
    host: str = field(default_factory=lambda: safe_text(socket.gethostname()))
    clock: Clock = time.monotonic
    cost: Cost | None = None
    """What a test has in place of the session's own measurement."""
    interval_s: float = 0.0
    """The interval that was asked for."""

    options: dict[str, Any] = field(default_factory=dict)
    """The options of lenses by name, as far as they were given or changed."""
    names: Names | None = None
    """Names of addresses, where --resolve asks for them; one that is found later is there at the next refresh."""

    def __post_init__(self) -> None:
        self.interval_s = self.session.interval_s
        self.options = dict(self.settings.options)
        if self.settings.view.resolve and self.names is None:
            from nettop.engine.resolver import Resolver  # few ask for it

            self.names = Resolver()

    def share(self) -> float | None:
        """The share of one CPU that nettop took lately; None before there was time to measure."""
        return (self.cost or self.session.cost)()

    def next_value(self, lens: Lens, option: Option) -> Any:
        """Set an option of a lens to the next of its steps, the first behind the last; the new value."""
        now = self.options.get(option.name, option.default)
        at = option.steps.index(now) + 1 if now in option.steps else 0
        self.options[option.name] = value = option.steps[at % len(option.steps)]
        self.session.set(lens.id, option.name, value)
        return value

    def change_interval(self, step: int) -> None:
        """The next longer (`step` 1) or shorter (−1) of the usual intervals."""
        now = self.interval_s
        others = [s for s in INTERVALS_S if (s > now if step > 0 else s < now)]
        if others:
            wanted = min(others) if step > 0 else max(others)
            self.interval_s = min(max(wanted, MIN_INTERVAL_S), MAX_INTERVAL_S)
            self.session.set_interval(self.interval_s)
