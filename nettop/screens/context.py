# SPDX-License-Identifier: Apache-2.0
"""What all screens share: the session, the settings, and the facts of the first line."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nettop.engine.session import Session
from nettop.errors import PermissionMissing, Unsupported
from nettop.preferences import LoadedPreferences, remember
from nettop.query.units import show_rates
from nettop.query.view import Names
from nettop.screens.history import HistogramHistory, TotalsHistory
from nettop.settings import Settings
from nettop.snapshots import lenses, view_name
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Lens, Option, Table
from nettop.snapshots.snapshot import Frame

INTERVALS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
AVERAGES_S = (2.0, 10.0, 40.0)


class TableRef(NamedTuple):
    """A table and its lens: what one screen shows."""

    lens: Lens
    table: Table

    @property
    def view_name(self) -> str:
        """Its name for --view."""
        return view_name(self.lens, self.table)

    def neighbour(self, step: int) -> TableRef:
        """The table `step` further on in the same lens; after the last comes the first."""
        tables = self.lens.tables
        return TableRef(self.lens, tables[(tables.index(self.table) + step) % len(tables)])


class Frozen(NamedTuple):
    """The frame that is shown while a lens is frozen, and when that began."""

    frame: Frame
    at: float


@dataclass
class LensState:
    """What goes along from one table of a lens to the next."""

    filter_text: str = ""
    frozen: Frozen | None = None
    chosen: Mapping[str, object] = field(default_factory=dict)
    """The values of the lens's `common` fields in the row that was chosen; None where they are unknown."""


@dataclass
class ScreenContext:
    """What every screen works with. Tests set their own host, clock and cost."""

    settings: Settings
    session: Session
    lenses: tuple[Lens, ...] = field(default_factory=lenses)
    host: str = field(default_factory=lambda: safe_text(socket.gethostname()))
    clock: Callable[[], float] = time.monotonic
    cost: Callable[[], float | None] | None = None
    """A test's cost, in place of the session's."""
    interval_s: float = 0.0
    """The chosen interval; --max-overhead may stretch it."""

    average_s: float = 0.0
    """How long rates are averaged over; 0: over each interval, and so where the interval is longer."""

    explains: bool = False
    """Whether details say what each fact means."""

    in_bytes: bool = False
    """Whether rates are shown in bytes per second, not in bits."""

    options: dict[str, Any] = field(default_factory=dict)
    """The options of lenses that were given or changed, by name."""
    names: Names | None = None
    """Names of addresses while they are shown; a name that is resolved later appears at the next refresh."""

    resolver: Names | None = None
    """What gives the names; made when they are first shown, and kept, so that it knows them when they are again."""

    lens_states: dict[str, LensState] = field(default_factory=dict)
    """What the tables of lenses share, by id."""

    histories: dict[str, TotalsHistory] = field(default_factory=dict)
    """What lenses' totals were, by id."""

    histograms: dict[str, HistogramHistory] = field(default_factory=dict)
    """What the histograms of tables were, by the tables' names for --view."""

    loaded: LoadedPreferences = field(default_factory=LoadedPreferences)
    """What the user chose before this start."""

    writing_refused: str = ""
    """Why no files are written, where that is so."""

    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The columns that were chosen, by the tables' names for --view."""

    def __post_init__(self) -> None:
        self.interval_s = self.session.interval_s
        self.in_bytes = self.in_bytes or self.loaded.preferences.unit == "bytes"
        self.columns = dict(self.loaded.preferences.columns)
        show_rates(in_bytes=self.in_bytes)
        self.options = dict(self.settings.options)
        if self.settings.view.resolve:
            self.change_names()

    def lens_state(self, lens: Lens) -> LensState:
        """What the tables of a lens share."""
        return self.lens_states.setdefault(lens.id, LensState())

    def history(self, lens: Lens) -> TotalsHistory:
        """What a lens's totals were, shared by the screens of its tables."""
        return self.histories.setdefault(lens.id, TotalsHistory(lens.main))

    def histogram_history(self, lens: Lens, table: Table) -> HistogramHistory:
        """What a table's histograms were, shared by the screens of its lens."""
        return self.histograms.setdefault(view_name(lens, table), HistogramHistory(table))

    def works(self, lens: Lens) -> bool:
        """False for a lens that was tried and cannot work for this user on this host."""
        return not isinstance(self.session.bus.failure(lens.id), PermissionMissing | Unsupported)

    def cpu_share(self) -> float | None:
        """nettop's own recent CPU time as a share of one CPU; None before it was measured."""
        return (self.cost or self.session.cost)()

    def next_value(self, lens: Lens, option: Option) -> Any:
        """Set an option of a lens to the next of its steps, after the last to the first; returns the value."""
        now = self.options.get(option.name, option.default)
        at = option.steps.index(now) + 1 if now in option.steps else 0
        self.options[option.name] = value = option.steps[at % len(option.steps)]
        self.session.set(lens.id, option.name, value)
        return value

    @property
    def is_averaging(self) -> bool:
        """Whether rates are averages of several intervals now."""
        return self.average_s > self.session.interval_s

    @property
    def next_average_s(self) -> float:
        """The next of the usual averages that are longer than the interval; after the last none."""
        least = max(self.average_s, self.session.interval_s)
        return next((seconds for seconds in AVERAGES_S if seconds > least), 0.0)

    def change_average(self) -> None:
        """Average over the next of the usual times, from a new reading on."""
        self.average_s = self.next_average_s
        self.session.bus.average_over(self.average_s)
        self.session.sample_now()

    def change_unit(self) -> None:
        """Show rates in bytes, or in bits again."""
        self.in_bytes = not self.in_bytes
        show_rates(in_bytes=self.in_bytes)

    def remember(self, key: str, value: str | Mapping[str, tuple[str, ...] | None]) -> None:
        """Write a choice into the user's file, if there is one. Raises NettopError."""
        if self.loaded.path is not None:
            self.check_writing()
            remember(self.loaded.path, key, value)

    def check_writing(self) -> None:
        """Raise PermissionMissing where files would be root's and not those of the user who called."""
        if self.writing_refused:
            raise PermissionMissing(
                f"no files are written: {self.writing_refused}", "run nettop as another user"
            )

    def change_names(self) -> None:
        """Show the names of addresses, or the addresses again."""
        if self.resolver is None:
            from nettop.engine.resolver import Resolver  # rarely needed

            self.resolver = Resolver()
        self.names = self.resolver if self.names is None else None

    def change_interval(self, step: int) -> None:
        """The next longer (`step` 1) or shorter (−1) of the usual intervals."""
        now = self.interval_s
        others = [s for s in INTERVALS_S if (s > now if step > 0 else s < now)]
        if others:
            self.interval_s = min(others) if step > 0 else max(others)
            self.session.set_interval(self.interval_s)
