# SPDX-License-Identifier: Apache-2.0
"""What the user chose, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nettop.errors import UsageError

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 3600.0


MAX_METRICS_INTERVAL_S = 86_400.0
MIN_ROTATE_BYTES = 16 << 10
MIN_OVERHEAD, MAX_OVERHEAD = 0.001, 1.0
"""Shares of one CPU."""
MIN_DURATION_S, MAX_DURATION_S = MIN_INTERVAL_S, 86_400.0
"""How long an export samples."""


class Format(StrEnum):
    """How plain output looks."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


class LineFormat(StrEnum):
    """How lines of a log or a report look."""

    TEXT = "text"
    JSONL = "jsonl"


class ExportFormat(StrEnum):
    """How an export is written: lines of folded stacks, speedscope's JSON, or a flame graph."""

    FOLDED = "folded"
    SPEEDSCOPE = "speedscope"
    SVG = "svg"


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """What to show, as given on the command line; frontends turn it into a query.

    `filters` are texts that must all hold; `sort` and `columns` are None for the table's own.
    """

    view: str = "connections"
    columns: tuple[str, ...] | None = None
    sort: str | None = None
    filters: tuple[str, ...] = ()
    limit: int | None = None
    all_rows: bool = False
    deltas: bool = False
    resolve: bool = False


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How plain output runs: `count` refreshes (None: until interrupted), `data_only` without the banner.

    `why` has JSON Lines say why a value is null that is not available on this host.
    """

    format: Format = Format.TABLE
    count: int | None = None
    data_only: bool = False
    why: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """One run of nettop.

    `mechanisms` are those to use in place of the best ones, by hook; `max_overhead` is the share of one CPU that nettop
    may take (None: whatever it takes); `options` are those that lenses declare, by name, as far as they were given.
    """

    interval_s: float = 1.0
    view: ViewSettings = field(default_factory=ViewSettings)
    text: TextSettings = field(default_factory=TextSettings)
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    max_overhead: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What `nettop log` writes, and where.

    `view` is LENS[.TABLE]; `filters` must all hold. The tables are read every `interval_s`, and logged every
    `metrics_interval_s`. Without a `directory` there is the console only. A file is rotated before it grows
    beyond `rotate_bytes`, and `keep` old ones stay. `why`, `mechanisms`, `max_overhead` and `options` are as in
    TextSettings and Settings.
    """

    view: str = "connections"
    filters: tuple[str, ...] = ()
    format: LineFormat = LineFormat.TEXT
    interval_s: float = 1.0
    metrics_interval_s: float = 30.0
    events: bool = True
    metrics: bool = True
    console: bool = True
    directory: str | None = "log"
    rotate_bytes: int = 64 << 20
    keep: int = 8
    why: bool = False
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    max_overhead: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What `nettop export` samples, and where it writes it.

    `view` is LENS.TABLE; `filters` must all hold. `path` is a file, or `-` for standard output. `mechanisms` and
    `options` are as in Settings.
    """

    view: str
    path: str
    format: ExportFormat
    duration_s: float = 10.0
    filters: tuple[str, ...] = ()
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What `nettop run` starts and reports.

    `words` are the command and its arguments. `live` reports each connection as it ends, not all at the end.
    Without `output`, a path, the report goes to standard error. The command runs as the user who called nettop through
    sudo, unless `as_root`. `why`, `mechanisms` and `options` are as in TextSettings and Settings.
    """

    words: tuple[str, ...]
    format: LineFormat = LineFormat.TEXT
    live: bool = False
    output: str | None = None
    as_root: bool = False
    why: bool = False
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)


def checked_interval(interval_s: float) -> float:
    """The interval, if it is within bounds. Raises UsageError otherwise."""
    if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise UsageError(
            f"an interval of {interval_s:g} s is not possible",
            f"give --interval between {MIN_INTERVAL_S:g} and {MAX_INTERVAL_S:g} seconds",
        )
    return interval_s


def checked_overhead(share: float) -> float:
    """The share of one CPU, if nettop can be held to it. Raises UsageError otherwise."""
    if not MIN_OVERHEAD <= share <= MAX_OVERHEAD:
        raise UsageError(
            f"an overhead of {share * 100:g} % of one CPU is not possible",
            f"give --max-overhead between {MIN_OVERHEAD * 100:g}% and {MAX_OVERHEAD * 100:g}%",
        )
    return share


def checked_duration(duration_s: float) -> float:
    """How long to sample, if that is possible. Raises UsageError otherwise."""
    if not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
        raise UsageError(
            f"a duration of {duration_s:g} s is not possible",
            f"give --duration between {MIN_DURATION_S:g} and {MAX_DURATION_S:g} seconds",
        )
    return duration_s


def checked_metrics_interval(metrics_interval_s: float, interval_s: float) -> float:
    """The interval of metrics, if it is possible with that between readings. Raises UsageError otherwise."""
    if not interval_s <= metrics_interval_s <= MAX_METRICS_INTERVAL_S:
        raise UsageError(
            f"metrics every {metrics_interval_s:g} s are not possible with a reading every {interval_s:g} s",
            f"give --metrics-interval between --interval and {MAX_METRICS_INTERVAL_S:g} seconds",
        )
    return metrics_interval_s
