# SPDX-License-Identifier: Apache-2.0
"""What is worth knowing beside the data: host, interval, hooks, counts, what was lost and what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.snapshot import Snapshot


def banner(snapshot: Snapshot, interval_s: float) -> str:
    """The line before the first block."""
    counts = (f"{name} {count}" for name, count in snapshot.counts.items())
    host = safe_text(os.uname().nodename)
    lost = " ".join(f"{name} {count}" for name, count in snapshot.notable_losses.items() if count)
    words = ("nettop", host, f"every {interval_s:g} s", *counts, *_via(snapshot), f"lost {lost or 0}")
    return "  ".join((*words, *_missing(snapshot)))


def change(before: Snapshot, now: Snapshot) -> str:
    """The line for what is missing or has another mechanism since `before`; empty if nothing changed."""
    state = mechanisms(now)
    return "" if state == mechanisms(before) else f"nettop  {state}"


def mechanisms(snapshot: Snapshot) -> str:
    """The mechanism of each hook, and the fields that are not available; empty where the source declares no hooks."""
    return "  ".join((*_via(snapshot), *_missing(snapshot)))


def _via(snapshot: Snapshot) -> tuple[str, ...]:
    via = " · ".join(f"{what} {how}" for what, how in snapshot.via.items())
    return (f"via {via}",) if via else ()


def _missing(snapshot: Snapshot) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for name, why in snapshot.missing.items():
        names.setdefault(why, []).append(name)
    return (f"{NOT_AVAILABLE} {', '.join(some)} ({why})" for why, some in names.items())
