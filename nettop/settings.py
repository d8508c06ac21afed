# SPDX-License-Identifier: Apache-2.0
"""What the user asked for, as frozen dataclasses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nettop.errors import UsageError

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 3600.0


MAX_METRICS_INTERVAL_S = 86_400.0
PAGE_BYTES = 4096
"""The least that a ring of events takes."""
MAX_RING_BYTES = 1 << 30
MIN_ROTATE_BYTES = 16 << 10
MIN_OVERHEAD, MAX_OVERHEAD = 0.001, 1.0
"""Shares of one CPU."""
FREQUENCY_HZ, MAX_FREQUENCY_HZ = 997, 10_000
"""Samples a second and CPU: unasked, in step with nothing else that is periodic; and at most."""
MIN_SAMPLES = 10
"""A CPU is looked at so often in an interval, or more: a sample too many is then a tenth of the CPU at most."""
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
    """How an export is written: lines of folded stacks, speedscope's JSON, or a picture."""

    FOLDED = "folded"
    SPEEDSCOPE = "speedscope"
    SVG = "svg"


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
    all_rows: bool = False
    deltas: bool = False
    resolve: bool = False


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How plain output runs: `count` refreshes (None: until interrupted), `data_only` without the banner.

    `why` has JSON Lines say why something is null that cannot be had here.
    """

    format: Format = Format.TABLE
    count: int | None = None
    data_only: bool = False
    why: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """One run of nettop. `ways` are those to use in place of the best ones, by point; `max_overhead` is the share of
    one CPU that nettop may take (None: whatever it takes); `frequency_hz` is how often each CPU is sampled."""

    interval_s: float = 1.0
    view: ViewSettings = field(default_factory=ViewSettings)
    text: TextSettings = field(default_factory=TextSettings)
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    max_overhead: float | None = None
    frequency_hz: int = FREQUENCY_HZ


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What `nettop log` writes, and where.

    `view` is LENS[.TABLE]; `filters` must all hold. The tables are read every `interval_s`, and logged every
    `metrics_interval_s`. Without a `directory` there is the console only. A file is rotated before it grows
    beyond `rotate_bytes`, and `keep` old ones stay. `ring_bytes` is the kernel's room for events. `why`, `ways`,
    `max_overhead` and `frequency_hz` are as in TextSettings and Settings.
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
    ring_bytes: int = 8 << 20
    why: bool = False
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    max_overhead: float | None = None
    frequency_hz: int = FREQUENCY_HZ


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What `nettop export` samples, and where it writes it.

    `view` is LENS.TABLE; `filters` must all hold. `path` is a file, or `-` for standard output. `ways` and
    `frequency_hz` are as in Settings.
    """

    view: str
    path: str
    format: ExportFormat
    duration_s: float = 10.0
    filters: tuple[str, ...] = ()
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    frequency_hz: int = FREQUENCY_HZ


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What `nettop run` starts and reports.

    `words` are the command and its arguments. `live` tells of each connection as it ends, not at the end of all.
    Without `output`, a path, the report goes to standard error. The command runs as who called nettop through
    sudo, unless `as_root`. `why` and `ways` are as in TextSettings and Settings.
    """

    words: tuple[str, ...]
    format: LineFormat = LineFormat.TEXT
    live: bool = False
    output: str | None = None
    as_root: bool = False
    ring_bytes: int = 8 << 20
    why: bool = False
    mechanisms: Mapping[str, str] = field(default_factory=dict)


def checked_interval(interval_s: float) -> float:
    """The interval, if a person can mean it. Raises UsageError otherwise."""
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


def checked_frequency(frequency_hz: int, span_s: float, spanned_by: str) -> int:
    """Samples a second and CPU, if that is possible and often enough for the span that is looked at, which the option
    `spanned_by` gives. Raises UsageError otherwise."""
    if not 1 <= frequency_hz <= MAX_FREQUENCY_HZ:
        raise UsageError(
            f"{frequency_hz} samples a second are not possible",
            f"give --frequency between 1 and {MAX_FREQUENCY_HZ}; {FREQUENCY_HZ} is usual",
        )
    if frequency_hz * span_s < MIN_SAMPLES:
        raise UsageError(
            f"--frequency {frequency_hz} is too low for {spanned_by} {span_s:g}: "
            f"a sample would stand for more than 1/{MIN_SAMPLES} of it",
            f"give --frequency {math.ceil(MIN_SAMPLES / span_s)} or more, or a longer {spanned_by}",
        )
    return frequency_hz


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


def checked_ring(ring_bytes: int) -> int:
    """The size of a ring of events, if the kernel takes it. Raises UsageError otherwise."""
    if ring_bytes & (ring_bytes - 1) or not PAGE_BYTES <= ring_bytes <= MAX_RING_BYTES:
        raise UsageError(
            f"a ring of {ring_bytes} bytes is not possible",
            "give --ring-size a power of two between 4K and 1G, such as 8M",
        )
    return ring_bytes
