# SPDX-License-Identifier: Apache-2.0
"""The banner beside the data: host, interval, hooks, counts, losses and unavailable fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.snapshot import Snapshot


def banner(snapshot: Snapshot, host: str, interval_s: float) -> str:
    """Return the line to print before the first block."""
    counts = (f"{name} {count}" for name, count in snapshot.counts.items())
    lost = " ".join(f"{name} {count}" for name, count in snapshot.notable_losses.items() if count)
    words = (
        "nettop",
        safe_text(host),
        f"every {interval_s:g} s",
        *counts,
        *_via(snapshot.via),
        f"lost {lost or 0}",
    )
    return "  ".join((*words, *_missing(snapshot)))


def change(before: Snapshot, now: Snapshot) -> str:
    """Return a line with changes since `before` in mechanisms and missing fields; empty if nothing changed."""
    news = mechanisms(now, before)
    return f"nettop  {news}" if news else ""


def mechanisms(now: Snapshot, before: Snapshot | None = None) -> str:
    """Return the mechanism of each hook, the gaps, and the fields that are not available, on one line.

    With a snapshot `before`, return only the news since then; empty if there is none.
    """
    if before is None:
        return "  ".join((*_via(now.via), *_missing(now)))
    reasons = set(before.gaps.values())
    new = {
        # The names in a gap change with each new namespace; explain its reason only once.
        name: how.partition(":")[0] if name in now.gaps and how in reasons else how
        for name, how in now.via.items()
        if before.via.get(name) != how
    }
    known = set(_missing(before))
    return "  ".join((*_via(new), *(line for line in _missing(now) if line not in known)))


def _via(how_by_name: Mapping[str, str]) -> tuple[str, ...]:
    via = " · ".join(f"{name} {how}" for name, how in how_by_name.items())
    return (f"via {via}",) if via else ()


def _missing(snapshot: Snapshot) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for name, why in snapshot.missing.items():
        names.setdefault(why, []).append(name)
    return (f"{NOT_AVAILABLE} {', '.join(some)} ({why})" for why, some in names.items())
