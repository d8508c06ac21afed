# SPDX-License-Identifier: Apache-2.0
"""The lenses in which something can be found: those with rules. Those that need hooks are only watched if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nettop.engine.session import Session
from nettop.snapshots import lenses
from nettop.snapshots.connections import GROUPS
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.findings import FIREWALL
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.source import SourceOptions

_ALWAYS_READ = ("bandwidth",)
"""Lenses whose rules need no hook, so that the findings lens reads what they compare."""
_LENSES = tuple(
    lens for lens in lenses() if any(table.rules for table in lens.tables) and lens.id not in _ALWAYS_READ
)
WATCHED = tuple(lens.id for lens in _LENSES)
"""The lenses that are attached to find everything."""
_TABLES = {CONNECTIONS.id: GROUPS.name, FINDINGS.id: FIREWALL.name}
"""Tables that are read only on demand."""


@contextmanager
def watched(session: Session, options: SourceOptions) -> Iterator[None]:
    """Attach every lens that has rules."""
    with ExitStack() as leases:
        for lens in WATCHED:
            tables = frozenset({_TABLES[lens]} if lens in _TABLES else ())
            leases.callback(session.enable(lens, options | SourceOptions(tables)).release)
        yield


def not_watched(session: Session) -> list[str]:
    """Return the lenses that failed, and why."""
    failures = ((lens, session.bus.failure(lens.id)) for lens in _LENSES)
    return [f"not watched: {lens.title}: {failure.what}" for lens, failure in failures if failure is not None]
