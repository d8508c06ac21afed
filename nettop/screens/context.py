# SPDX-License-Identifier: Apache-2.0
"""State shared by all screens: the session, the settings, and the data of the first line."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from nettop.engine.session import Session
from nettop.errors import PermissionMissing, Unsupported
from nettop.preferences import LoadedPreferences, remember
from nettop.query.columns import Names
from nettop.query.units import show_rates
from nettop.screens.history import HistogramHistory, TotalsHistory
from nettop.settings import Settings
from nettop.snapshots import lenses, view_name
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Lens, Option, Table
from nettop.snapshots.snapshot import Frame

if TYPE_CHECKING:  # it loads the reader of recordings, which the running kernel does not need
    from nettop.recording.player import Player

AVERAGES_S = (2.0, 10.0, 40.0)


class TableRef(NamedTuple):
    """A table and its lens, shown by one screen."""

    lens: Lens
    table: Table

    @property
    def view_name(self) -> str:
        """The table's name for --view."""
        return view_name(self.lens, self.table)

    def neighbour(self, step: int) -> TableRef:
        """Return the table `step` places further in the same lens, wrapping around."""
        tables = self.lens.tables
        return TableRef(self.lens, tables[(tables.index(self.table) + step) % len(tables)])


class Frozen(NamedTuple):
    """The frame shown while a lens is frozen, and the time of freezing."""

    frame: Frame
    at: float


class LensState:
    """State shared by the screens of a lens's tables."""

    def __init__(self, lens: Lens) -> None:
        self.filter_text = ""
        self.frozen: Frozen | None = None
        self.chosen: Mapping[str, object] = {}
        """Values of the lens's `common` fields in the selected row; None where unknown."""
        self.totals = TotalsHistory(lens.main)
        self.histograms: dict[str, HistogramHistory] = {}
        """Histories of the tables' histograms, by the tables' names."""


@dataclass
class ScreenContext:
    """State and services shared by all screens. Tests set their own host, clock and cost."""

    settings: Settings
    session: Session
    lenses: tuple[Lens, ...] = field(default_factory=lenses)
    host: str = field(default_factory=lambda: safe_text(socket.gethostname()))
    clock: Callable[[], float] = time.monotonic
    cost: Callable[[], float | None] | None = None
    """A test's replacement for the session's cost."""
    interval_s: float = 0.0
    """The chosen interval; --max-overhead may stretch it."""

    average_s: float = 0.0
    """Averaging time of rates in seconds; at 0 or below the interval, rates are those of each interval."""

    explains: bool = False
    """True if details explain each value."""

    in_bytes: bool = False
    """True if rates are shown in bytes per second, not in bits."""

    options: dict[Option[Any], Any] = field(default_factory=dict)
    """Lens options that were given or changed."""
    names: Names | None = None
    """Host names while they are shown; names resolved later appear at the next refresh."""

    resolver: Names | None = None
    """The resolver, created when names are first shown, and kept for its cache."""

    lens_states: dict[str, LensState] = field(default_factory=dict)
    """State shared by the tables of each lens, by id."""

    loaded: LoadedPreferences = field(default_factory=LoadedPreferences)
    """The user's saved preferences."""

    writing_refused: str = ""
    """Reason why no files are written; empty if they are."""

    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The columns the user chose, by the tables' names for --view."""

    player: Player | None = None
    """What plays the recording that is shown; None if the running kernel is."""

    def __post_init__(self) -> None:
        self.interval_s = self.session.interval_s
        if self.player is not None:
            self.host = self.player.recording.host
        self.in_bytes = self.in_bytes or self.loaded.preferences.unit == "bytes"
        self.columns = dict(self.loaded.preferences.columns)
        show_rates(in_bytes=self.in_bytes)
        self.options = dict(self.settings.options)
        if self.settings.view.resolve:
            self.change_names()

    def lens_state(self, lens: Lens) -> LensState:
        """Return the state shared by the tables of a lens."""
        return self.lens_states.setdefault(lens.id, LensState(lens))

    @property
    def has_findings(self) -> bool:
        """True if the lens of findings is among the lenses."""
        return any(lens.id == FINDINGS.id for lens in self.lenses)

    def works(self, lens: Lens) -> bool:
        """Return False for a lens that was tried and cannot work for this user on this host."""
        return not isinstance(self.session.bus.failure(lens.id), PermissionMissing | Unsupported)

    @property
    def is_averaging(self) -> bool:
        """True if rates are currently averaged over several intervals."""
        return self.average_s > self.session.interval_s

    @property
    def next_average_s(self) -> float:
        """The next of `AVERAGES_S` that is longer than the interval; 0 after the last."""
        current_s = max(self.average_s, self.session.interval_s)
        return next((seconds for seconds in AVERAGES_S if seconds > current_s), 0.0)

    def remember(self, key: str, value: str | Mapping[str, tuple[str, ...] | None]) -> None:
        """Save a choice to the user's file, if there is one. Raise NettopError if that fails."""
        if self.loaded.path is not None:
            self.check_writing()
            remember(self.loaded.path, key, value)

    def check_writing(self) -> None:
        """Raise PermissionMissing if files would belong to root instead of the invoking user."""
        if self.writing_refused:
            raise PermissionMissing(
                f"no files are written: {self.writing_refused}", "run nettop as another user"
            )

    def change_names(self) -> None:
        """Switch between host names and addresses."""
        if self.resolver is None:
            from nettop.engine.resolver import Resolver  # rarely needed

            self.resolver = Resolver()
        self.names = self.resolver if self.names is None else None


def beside(choices: Sequence[float], now: float, step: int) -> float:
    """Return the next larger (`step` 1) or smaller (−1) choice; `now` after the last one."""
    others = [choice for choice in choices if (choice > now if step > 0 else choice < now)]
    return (min if step > 0 else max)(others, default=now)
