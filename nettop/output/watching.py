# SPDX-License-Identifier: Apache-2.0
"""The lenses in which something can be found: those with rules. Those that need hooks are only watched if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nettop.engine.session import Session
from nettop.snapshots import lenses, view_name
from nettop.snapshots.connections import GROUPS
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.findings import FINDINGS, FIREWALL
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Lens, Table
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


def not_watched(session: Session) -> list[str]:
    """Return the lenses that failed, and the tables with rules that lack their hooks, and why."""
    return [f"not watched: {what}: {why}" for lens in _LENSES for what, why in _failures(session, lens)]


def _failures(session: Session, lens: Lens) -> Iterator[tuple[str, str]]:
    """Yield what of a lens cannot be read, and why."""
    failure, frame = session.bus.failure(lens.id), session.bus.frame(lens.id)
    if failure is not None:
        yield lens.title, failure.what
    elif frame is not None:
        for table in (each for each in lens.tables if each.rules):
            why = frame.now.why_unavailable(table)
            if why is not None:
                yield view_name(lens, table), why
