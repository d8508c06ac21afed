# SPDX-License-Identifier: Apache-2.0
"""Settings of the commands, as named tuples, which are created faster than dataclasses."""

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
_EMPTY: Mapping[Any, Any] = {}
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
    mechanisms: Mapping[str, str] = _EMPTY
    max_overhead: float | None = None
    options: OptionValues = _EMPTY


class LogSettings(NamedTuple):
    """Settings of `nettop log`.

    `views` are LENS[.TABLE]; rows must match all `filters`; `columns` are None for each table's defaults. Tables are
    read every `interval_s` and logged every `metrics_interval_s`. Without a `directory` only the console is written. A
    file is rotated before it exceeds `rotate_bytes`, and `keep` old ones are kept. `why`, `mechanisms`, `max_overhead`
    and `options` are as in TextSettings and Settings.
    """

    views: tuple[str, ...] = ("connections",)
    columns: tuple[str, ...] | None = None
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
    mechanisms: Mapping[str, str] = _EMPTY
    max_overhead: float | None = None
    options: OptionValues = _EMPTY


class ExportSettings(NamedTuple):
    """Settings of `nettop export`.

    `view` is LENS.TABLE; rows must match all `filters`. `path` is a file, or `-` for standard output. `mechanisms` and
    `options` are as in Settings.
    """

    view: str
    path: str
    format: ExportFormat
    duration_s: float = 10.0
    filters: tuple[str, ...] = ()
    mechanisms: Mapping[str, str] = _EMPTY
    options: OptionValues = _EMPTY


class RunSettings(NamedTuple):
    """Settings of `nettop run`.

    `words` are the command and its arguments. `live` reports each connection as it ends, not all at the end. `output`
    is the path of the report, standard error if None. The command runs as the user who called nettop through sudo.
    `why`, `mechanisms` and `options` are as in TextSettings and Settings.
    """

    words: tuple[str, ...]
    format: LineFormat = LineFormat.TEXT
    live: bool = False
    output: str | None = None
    why: bool = False
    mechanisms: Mapping[str, str] = _EMPTY
    options: OptionValues = _EMPTY


DEFAULT_LISTEN = "127.0.0.1:9471"
UNWATCHED_INTERVAL_S = 5.0
"""Seconds between the readings of `nettop serve` while nobody watches, unless a longer interval was chosen."""


class ServeSettings(NamedTuple):
    """Settings of `nettop serve`.

    `listen` are addresses, HOST:PORT or unix:PATH. Requests need the token in `token_file`, if given; `cert` and `key`
    are the paths of a certificate chain and its key, for TLS. `lenses` are ids; rows must match all `filters` whose
    fields their table has. `top` overrides the number of series of bounded sets, by name. `access_log` writes each
    response to standard error. `mechanisms`, `max_overhead` and `options` are as in Settings.
    """

    listen: tuple[str, ...] = (DEFAULT_LISTEN,)
    insecure_listen: bool = False
    access_log: bool = False
    token_file: str | None = None
    cert: str | None = None
    key: str | None = None
    lenses: tuple[str, ...] = ()
    interval_s: float = 1.0
    filters: tuple[str, ...] = ()
    top: Mapping[str, int] = _EMPTY
    mechanisms: Mapping[str, str] = _EMPTY
    max_overhead: float | None = None
    options: OptionValues = _EMPTY


class CheckSettings(NamedTuple):
    """Settings of `nettop check`: how long to watch, how to print, and the kinds of findings to leave out."""

    duration_s: float = 3.0
    interval_s: float = 1.0
    format: LineFormat = LineFormat.TEXT
    ignored: frozenset[str] = frozenset()
    mechanisms: Mapping[str, str] = _EMPTY


class RecordSettings(NamedTuple):
    """Settings of `nettop record`.

    `path` is a file, `-` for standard output, or with `hourly` a directory with a file for each hour; empty for a file
    in the working directory that is named by host and time. `lenses` are ids. The recording ends after `duration_s`
    (None: when interrupted). A file or standard output ends it before exceeding `max_bytes` (None: no limit); a
    directory removes its oldest files that exceed `max_bytes` or `max_age_s`. `mechanisms`, `max_overhead` and
    `options` are as in Settings. `redaction_key` replaces addresses, names and texts (None: nothing).
    """

    path: str
    lenses: tuple[str, ...]
    hourly: bool = False
    redaction_key: bytes | None = None
    interval_s: float = 1.0
    duration_s: float | None = None
    max_bytes: int | None = None
    max_age_s: float = 7 * DAY_S
    mechanisms: Mapping[str, str] = _EMPTY
    max_overhead: float | None = None
    options: OptionValues = _EMPTY


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


class CollectSettings(NamedTuple):
    """Settings of `nettop collect`.

    Inputs: `listen` are UDP ports, with or without addresses; datagrams are accepted from the networks `exporters`, by
    default from all. `sampling_rates` are the sampling rates of exporters and their interfaces. The collector reads one
    packet in `sampling` from the interfaces `mirrors`.

    Outputs: the collector stores flows in `data_dir`, or on the servers `clickhouse`, which may form a `cluster`, and
    sends them to `kafka` (brokers and a topic). The spool, at most `spool_bytes`, is always in `data_dir`. `retention`
    overrides the seconds for which tables keep their rows, by name. Only flows that match all `filters` are stored.

    `networks` and `interfaces` are files, `own_networks` are prefixes. `queries` configures the query server.
    `rereads_files` makes it reload files that change while it runs.
    """

    data_dir: str
    listen: tuple[str, ...] = FLOW_PORTS
    exporters: tuple[str, ...] = ()
    receive_buffer_bytes: int = 64 << 20
    workers: int = 1
    mirrors: tuple[str, ...] = ()
    sampling: int = 1000
    sampling_rates: tuple[str, ...] = ()
    clickhouse: tuple[str, ...] = ()
    cluster: str = ""
    kafka: str = ""
    retention: Mapping[str, int] = _EMPTY
    spool_bytes: int = 10 << 30
    filters: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    own_networks: tuple[str, ...] = ()
    queries: ServeSettings = ServeSettings(listen=(DEFAULT_QUERY_LISTEN,))
    rereads_files: bool = True


def checked_seconds(
    flag: str, seconds: float, least: float = MIN_INTERVAL_S, most: float = MAX_INTERVAL_S
) -> float:
    """Return the seconds if they are in the range of the option `flag`, by default an interval. Raise UsageError
    otherwise."""
    if not least <= seconds <= most:
        remedy = f"give {flag} between {least:g} and {most:g} seconds"
        raise UsageError(f"{flag} {seconds:g} is out of range", remedy)
    return seconds
