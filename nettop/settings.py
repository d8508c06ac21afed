# SPDX-License-Identifier: Apache-2.0
"""What the user chose, as frozen dataclasses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nettop.errors import UsageError

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 3600.0
DAY_S = 86_400.0
MAX_PORT = 0xFFFF
STDOUT = "-"
"""The FILE that is standard output."""


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

    `views` are LENS[.TABLE]; `filters` must all hold; `columns` are None for each table's own. The tables are read
    every `interval_s`, and logged every `metrics_interval_s`. Without a `directory` there is the console only. A
    file is rotated before it grows beyond `rotate_bytes`, and `keep` old ones stay. `why`, `mechanisms`,
    `max_overhead` and `options` are as in TextSettings and Settings.
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
    sudo. `why`, `mechanisms` and `options` are as in TextSettings and Settings.
    """

    words: tuple[str, ...]
    format: LineFormat = LineFormat.TEXT
    live: bool = False
    output: str | None = None
    why: bool = False
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)


DEFAULT_LISTEN = "127.0.0.1:9471"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What `nettop serve` reads, and how it serves it.

    `listen` are addresses: HOST:PORT or unix:PATH. Requests need the `token`, if there is one, which is read from
    `token_file`; `cert` and `key` are the paths of a certificate chain and its key, for TLS. `lenses` are ids;
    `filters` must all hold for rows of the tables that have their fields. `top` is how many series each bounded set
    has, by its name, where it is not the declared number. With `access_log` each answer is a line on standard error.
    `mechanisms`, `max_overhead` and `options` are as in Settings.
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
    top: Mapping[str, int] = field(default_factory=dict)
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    max_overhead: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)


FLOW_PORTS = ("6343", "2055", "4739", "2056")
"""Where flows are received if nothing else is said: the ports of sFlow and of IPFIX, and two that NetFlow often has."""
DEFAULT_QUERY_LISTEN = "127.0.0.1:9472"
FLOWS_SOCKET = "flows.sock"
"""The Unix socket of a collector, in its directory."""
SYSTEM_FLOWS_DIR = "/var/lib/nettop/flows"
"""Where root stores flows if nothing else is said."""


def default_flows_dir() -> str:
    """Where whoever runs nettop stores flows if nothing else is said."""
    if os.geteuid() == 0:
        return SYSTEM_FLOWS_DIR
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "nettop", "flows")


def collector_urls(directory: str) -> tuple[str, ...]:
    """Where a collector may be that stores in a directory: its socket, and where queries are answered by default."""
    return f"unix:{os.path.join(directory, FLOWS_SOCKET)}", f"http://{DEFAULT_QUERY_LISTEN}"


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """What `nettop collect` receives, and where it keeps it.

    `listen` are UDP ports, or addresses with one. `sampling_rates` are words that say at which rate exporters sample,
    and their interfaces. One packet in `sampling` is taken of the interfaces `mirrors`, all
    that the firewall logs to the groups `nflog`, and with `conntrack` the connections that it has seen end. Flows are
    stored in `data_dir`, or by the servers `clickhouse`, which may be those of a `cluster`, and sent to `kafka`, which
    is brokers and a topic; what waits to be stored is in `data_dir` in any case, `spool_bytes` at most. `retention` has
    the seconds for which a table keeps its rows, by its name, where they are not the declared ones. `filters` must all
    hold for flows that are stored. `networks` and `interfaces` are files, `own_networks` are prefixes. `queries` says
    where and to whom queries are answered. Without `rereads_files` a change of files while it runs counts for nothing.
    """

    data_dir: str
    listen: tuple[str, ...] = FLOW_PORTS
    receive_buffer_bytes: int = 64 << 20
    workers: int = 1
    mirrors: tuple[str, ...] = ()
    sampling: int = 1000
    sampling_rates: tuple[str, ...] = ()
    nflog: tuple[int, ...] = ()
    conntrack: bool = False
    clickhouse: tuple[str, ...] = ()
    cluster: str = ""
    kafka: str = ""
    retention: Mapping[str, int] = field(default_factory=dict)
    spool_bytes: int = 10 << 30
    filters: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    own_networks: tuple[str, ...] = ()
    queries: ServeSettings = field(default_factory=lambda: ServeSettings(listen=(DEFAULT_QUERY_LISTEN,)))
    rereads_files: bool = True


def checked_seconds(
    flag: str, seconds: float, least: float = MIN_INTERVAL_S, most: float = MAX_INTERVAL_S
) -> float:
    """The seconds, if the option `flag` accepts them; by default as an interval. Raises UsageError otherwise."""
    if not least <= seconds <= most:
        remedy = f"give {flag} between {least:g} and {most:g} seconds"
        raise UsageError(f"{flag} {seconds:g} is out of range", remedy)
    return seconds
