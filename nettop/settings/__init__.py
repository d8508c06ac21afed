# SPDX-License-Identifier: Apache-2.0
"""Settings of the commands: what several of them share is here, each command's in a module of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from nettop.errors import UsageError
from nettop.snapshots.schema import OptionValues

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 3600.0
DAY_S = 86_400.0
MAX_PORT = 0xFFFF
EMPTY: Mapping[Any, Any] = {}
"""Default of mappings."""
STDOUT = "-"
"""The FILE that means standard output."""


class Format(StrEnum):
    """Formats of plain output."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


class LineFormat(StrEnum):
    """Formats of log and report lines."""

    TEXT = "text"
    JSONL = "jsonl"


class ExportFormat(StrEnum):
    """Formats of an export: folded stacks, speedscope's JSON, or an SVG flame graph."""

    FOLDED = "folded"
    SPEEDSCOPE = "speedscope"
    SVG = "svg"


class ViewSettings(NamedTuple):
    """The table options of the command line, from which frontends make a query.

    Rows must match all `filters`; `sort` and `columns` are None for the table's defaults.
    """

    view: str = "connections"
    columns: tuple[str, ...] | None = None
    sort: str | None = None
    filters: tuple[str, ...] = ()
    limit: int | None = None
    all_rows: bool = False
    deltas: bool = False
    resolve: bool = False


@dataclass(frozen=True, slots=True)  # tuples have a method `count`
class TextSettings:
    """Settings of plain output: `count` refreshes (None: until interrupted), `data_only` without the banner.

    `why` adds to JSON Lines the reason why a value is not available on this host.
    """

    format: Format = Format.TABLE
    count: int | None = None
    data_only: bool = False
    why: bool = False


class Settings(NamedTuple):
    """Settings of one run of nettop.

    `mechanisms` are those to use instead of the best ones, by hook; `max_overhead` is the share of one CPU that nettop
    may use (None: no limit); `options` are the given lens options.
    """

    interval_s: float = 1.0
    view: ViewSettings = ViewSettings()
    text: TextSettings = TextSettings()
    mechanisms: Mapping[str, str] = EMPTY
    max_overhead: float | None = None
    options: OptionValues = EMPTY


DEFAULT_LISTEN = "127.0.0.1:9471"
UNWATCHED_INTERVAL_S = 5.0
"""Seconds between the readings of `nettop serve` while nobody watches, unless a longer interval was chosen."""


FLOW_PORTS = ("6343", "2055", "4739", "2056")
"""Default ports for flows: those of sFlow and IPFIX, and two common ones of NetFlow."""
DEFAULT_QUERY_LISTEN = "127.0.0.1:9472"
FLOWS_SOCKET = "flows.sock"
"""The name of a collector's Unix socket in its directory."""
SYSTEM_FLOWS_DIR = "/var/lib/nettop/flows"
"""The default directory of flows for root."""


def default_flows_dir() -> str:
    """Return the default directory of flows for the current user."""
    if os.geteuid() == 0:
        return SYSTEM_FLOWS_DIR
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "nettop", "flows")


def collector_urls(directory: str) -> tuple[str, ...]:
    """Return the possible URLs of a collector that stores in a directory: its socket, and the default query address."""
    return f"unix:{os.path.join(directory, FLOWS_SOCKET)}", f"http://{DEFAULT_QUERY_LISTEN}"


def checked_seconds(
    flag: str, seconds: float, least: float = MIN_INTERVAL_S, most: float = MAX_INTERVAL_S
) -> float:
    """Return the seconds if they are in the range of the option `flag`, by default an interval. Raise UsageError
    otherwise."""
    if not least <= seconds <= most:
        remedy = f"give {flag} between {least:g} and {most:g} seconds"
        raise UsageError(f"{flag} {seconds:g} is out of range", remedy)
    return seconds
