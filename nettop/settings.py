# SPDX-License-Identifier: Apache-2.0
"""What the user asked for, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from nettop.errors import UsageError

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 3600.0


class Format(StrEnum):
    """How plain output looks."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """What to show, as the words of the command line; the doors turn them into a query.

    `filters` are texts that must all hold; `sort` and `columns` are None for the table's own.
    """

    view: str = "connections"
    columns: tuple[str, ...] | None = None
    sort: str | None = None
    filters: tuple[str, ...] = ()
    limit: int | None = None
    every: bool = False
    deltas: bool = False
    resolve: bool = False


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How plain output runs: `count` refreshes (None: until interrupted), `data_only` without the banner."""

    format: Format = Format.TABLE
    count: int | None = None
    data_only: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """One run of nettop."""

    interval_s: float = 1.0
    view: ViewSettings = field(default_factory=ViewSettings)
    text: TextSettings = field(default_factory=TextSettings)


def checked_interval(interval_s: float) -> float:
    """The interval, if a person can mean it. Raises UsageError otherwise."""
    if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise UsageError(
            f"an interval of {interval_s:g} s is not possible",
            f"give --interval between {MIN_INTERVAL_S:g} and {MAX_INTERVAL_S:g} seconds",
        )
    return interval_s
