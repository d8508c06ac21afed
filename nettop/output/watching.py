# SPDX-License-Identifier: Apache-2.0
"""The lenses in which something can be found: those with rules. Those that need hooks are only watched if asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from nettop.engine.bus import Bus
from nettop.engine.session import Session
from nettop.errors import ExitCode
from nettop.query.findings import parsed_rules
from nettop.query.view import View
from nettop.snapshots import lenses, view_name
from nettop.snapshots.connections import GROUPS
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.findings import FINDINGS, FIREWALL
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Lens, Rule, Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions

_ALWAYS_READ = ("bandwidth",)
"""Lenses whose rules need no hook, so that the findings lens reads what they compare."""
_LENSES = tuple(
    lens for lens in lenses() if any(table.rules for table in lens.tables) and lens.id not in _ALWAYS_READ
)
WATCHED = tuple(lens.id for lens in _LENSES)
"""The lenses that are attached to find everything."""
_TABLES = {CONNECTIONS.id: GROUPS.name, FINDINGS_LENS.id: FIREWALL.name}
"""Tables that are read only on demand."""


def watches_all(table: Table) -> bool:
    """Return whether text of a table watches every lens that has rules: text of the findings does."""
    return table.name == FINDINGS.name


@contextmanager
def watched(session: Session, options: SourceOptions) -> Iterator[None]:
    """Attach every lens that has rules."""
    with ExitStack() as leases:
        for lens in WATCHED:
            tables = frozenset({_TABLES[lens]} if lens in _TABLES else ())
            leases.callback(session.enable(lens, options | SourceOptions(tables)).release)
        yield


class Unwatched(NamedTuple):
    """A lens, a table, kinds of findings or namespaces that were not watched, why, and the exit code of a command that
    needs them: that of success for what only explains findings."""

    what: str
    why: str
    code: ExitCode

    def __str__(self) -> str:
        return f"not watched: {self.what}: {self.why}"


def not_watched(bus: Bus, ignored: Collection[str] = ()) -> list[Unwatched]:
    """Return what could not be watched, of the lenses with kinds of findings that are not `ignored`."""
    return [failure for lens in needed_lenses(ignored) for failure in _failures(bus, lens, ignored)]


def needed_lenses(ignored: Collection[str]) -> list[Lens]:
    """Return the lenses with kinds of findings that are not `ignored`."""
    return [lens for lens in _LENSES if any(_kinds(table, ignored) for table in lens.tables)]


def unread(bus: Bus, first: dict[str, Snapshot], newest: Snapshot, ignored: Collection[str]) -> list[str]:
    """Return the titles of the lenses that had not failed and not been read twice, as a rate needs, by the `newest`
    reading of findings. `first` holds the first reading of each."""
    needed = (lens for lens in needed_lenses(ignored) if bus.failure(lens.id) is None)
    return [lens.title for lens in needed if not _is_read_twice(bus.frame(lens.id), lens, first, newest)]


def _is_read_twice(frame: Frame | None, lens: Lens, first: dict[str, Snapshot], newest: Snapshot) -> bool:
    """Return whether each table with rules was: with many namespaces, some are not read each time."""
    if frame is None or frame.before is None or frame.now.boot_ns > newest.boot_ns:
        return False
    began, now = first.setdefault(lens.id, frame.now).tables, frame.now.tables
    return not any(began.get(table.name, 0) is now.get(table.name) for table in lens.tables if table.rules)


def _kinds(table: Table, ignored: Collection[str]) -> list[Rule]:
    return [rule for rule in table.rules if rule.name not in ignored]


def _failures(bus: Bus, lens: Lens, ignored: Collection[str]) -> Iterator[Unwatched]:
    """Yield what of a lens could not be watched."""
    failure, frame = bus.failure(lens.id), bus.frame(lens.id)
    if failure is not None:
        yield Unwatched(lens.title, failure.what.removeprefix(f"{lens.title}: "), failure.exit_code)
    elif frame is not None:
        for table in lens.tables:
            yield from _lacking(lens, table, frame, _kinds(table, ignored))
        for what, why in frame.now.notable_gaps.items() if lens is FINDINGS_LENS else ():
            yield Unwatched(what, why, ExitCode.PERMISSION)


def _lacking(lens: Lens, table: Table, frame: Frame, kinds: list[Rule]) -> Iterator[Unwatched]:
    """Yield a table that lacks its hooks, or else the kinds of findings that lack columns."""
    view, lacking = view_name(lens, table), frame.now.missing_hook(table)
    if kinds and lacking is not None:
        only_explains = all(rule.only_explains for rule in kinds)
        yield Unwatched(view, lacking.why, ExitCode.DONE if only_explains else lacking.code)
    elif kinds and table.name in frame.now.tables:
        rules = parsed_rules(lens, table)
        missing = View(frame, rules.query).missing
        codes = {hook.why: hook.code for hook in frame.now.hooks if hook.mechanism is None}
        for parsed in rules.rules:
            if parsed.rule in kinds and (
                why := next((missing[name] for name in parsed.names if name in missing), "")
            ):
                yield Unwatched(f"{parsed.rule.name} in {view}", why, codes.get(why, ExitCode.UNSUPPORTED))
