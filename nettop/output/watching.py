# SPDX-License-Identifier: Apache-2.0
"""The lenses in which something can be found: those with rules. Those that need hooks are only watched if asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from nettop.engine.session import Session
from nettop.errors import ExitCode, NettopError
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


def not_watched(
    frame_of: Callable[[str], Frame | None],
    failure_of: Callable[[str], NettopError | None],
    ignored: Collection[str] = (),
) -> list[Unwatched]:
    """Return what could not be watched, of the lenses with kinds of findings that are not `ignored`."""
    needed = ((lens, frame_of(lens.id), failure_of(lens.id)) for lens in needed_lenses(ignored))
    return [each for watched_lens in needed for each in _failures(*watched_lens, ignored)]


def needed_lenses(ignored: Collection[str]) -> list[Lens]:
    """Return the lenses with kinds of findings that are not `ignored`."""
    return [lens for lens in _LENSES if any(_kinds(table, ignored) for table in lens.tables)]


def _kinds(table: Table, ignored: Collection[str]) -> list[Rule]:
    return [rule for rule in table.rules if rule.name not in ignored]


def unread(
    session: Session, first: dict[str, Snapshot], newest: Snapshot, ignored: Collection[str]
) -> list[str]:
    """Return the titles of the lenses that had not failed and not been read twice, as a rate needs, by the `newest`
    reading of findings. `first` holds the first reading of each."""
    late = []
    for lens in needed_lenses(ignored):
        frame = session.bus.frame(lens.id)
        if session.bus.failure(lens.id) is None and (
            frame is None
            or frame.before is None
            or frame.now.boot_ns > newest.boot_ns
            or _has_rows_of(first.setdefault(lens.id, frame.now), frame.now, lens)
        ):
            late.append(lens.title)
    return late


def _has_rows_of(first: Snapshot, now: Snapshot, lens: Lens) -> bool:
    """Return whether a table with rules was not read since: with many namespaces, some are not read each time."""
    read = (table.name for table in lens.tables if table.rules and table.name in now.tables)
    return any(first.tables.get(name) is now.tables[name] for name in read)


def _failures(
    lens: Lens, frame: Frame | None, failure: NettopError | None, ignored: Collection[str]
) -> Iterator[Unwatched]:
    """Yield what of a lens could not be watched."""
    if failure is not None:
        yield Unwatched(lens.title, failure.what, failure.exit_code)
    elif frame is not None:
        for table in lens.tables:
            yield from _lacking(lens, table, frame, _kinds(table, ignored))
        if lens is FINDINGS_LENS:
            gaps = frame.now.notable_gaps.items()
            yield from (Unwatched(what, why, ExitCode.PERMISSION) for what, why in gaps)


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
            if parsed.rule in kinds and (names := sorted(parsed.names & missing.keys())):
                why = missing[names[0]]
                code = codes.get(why, ExitCode.UNSUPPORTED)
                yield Unwatched(f"{parsed.rule.name} in {view}", why, code)
