# SPDX-License-Identifier: Apache-2.0
"""`nettop flows`: settings, and querying the collected flows."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nettop.commands.invoker import SERVICE_USERS, User, caller, explain_caller, owner_of_directory
from nettop.commands.options import SourceOf, require_output
from nettop.commands.privilege import give_up_privileges
from nettop.diagnostics import Diagnostics
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.settings import DEFAULT_QUERY_LISTEN, Format, collector_urls, default_flows_dir
from nettop.settings.declared import choice, complete_list, setting
from nettop.settings.shared import CommandSettings
from nettop.settings.values import one_of, parse_count, parse_duration, parse_names

HELP = "Query the flows stored by nettop collect: show the top talkers, or run SQL."

EXAMPLES = """\
nettop flows  # top pairs of hosts in the last hour
nettop flows --top service_port,protocol --since 1d --limit 20
nettop flows --top src_as --by packets --since 4w --format csv
nettop flows sql 'SELECT src, sum(bytes) FROM flows_raw GROUP BY src ORDER BY 2 DESC LIMIT 5'
nettop flows sql 'DESCRIBE flows_raw'  # list the columns; SHOW TABLES lists the tables

BYTES and PACKETS are multiplied by the sampling rate where it is known. Queries are read-only."""


def _complete_top(incomplete: str) -> list[str]:
    from nettop.collector.top import KEYS

    return complete_list(KEYS, incomplete)


_ORDERS = ("bytes", "packets", "flows")


# fmt: off
@dataclass(frozen=True, kw_only=True)
class FlowsSettings(CommandSettings):
    """Settings of `nettop flows`."""

    words: tuple[str, ...] = setting((), metavar="[sql QUERY]",
                                     help="Run this query in ClickHouse SQL instead of --top")
    top: tuple[str, ...] = setting(("src", "dst"), "--top", metavar="A,B,C", parse=parse_names, complete=_complete_top,
                                   help="Group by these columns: src, dst, service_port, protocol, exporter, src_as … "
                                   "(src,dst)")
    since_s: float = setting(3600.0, "--since", metavar="TIME", parse=partial(parse_duration,
                             examples="10m, 6h, 2d or 4w"), help="Look back this far: 10m, 6h, 2d, 4w (1h)")
    by: str = setting("bytes", "--by", metavar="|".join(_ORDERS), parse=one_of("order", _ORDERS), complete=_ORDERS,
                      help="Rank by bytes, packets or flows (bytes)")
    limit: int = setting(10, "--limit", metavar="N", parse=parse_count, help="Show at most N rows (10)")
    format: Format = choice(Format.TABLE, "--format", Format,
                            help="Output format: table for people, csv or jsonl for programs (table)")
    collector: str | None = setting(None, "--collector", metavar="URL", help="Collector to query: http://HOST:PORT or "
                                    f"unix:PATH (socket in the data directory, else {DEFAULT_QUERY_LISTEN})")
    data_dir: str | None = setting(None, "--data-dir", metavar="DIR", help="Data directory of nettop collect")
    # fmt: on


def start_flows(settings: FlowsSettings, _source_of: SourceOf) -> ExitCode:
    """Run the query and write its result. Raise NettopError if that fails."""
    sql = _sql(settings.words)
    with importing():
        from nettop.collector.reader import open_reader
        from nettop.collector.top import TopQuery, checked_keys, read_top
        from nettop.output.flow_queries import remarks, write_answer, write_top

    query = TopQuery(checked_keys(settings.top), math.ceil(settings.since_s), settings.by, settings.limit)
    require_output()
    data_dir = Path(default_flows_dir() if settings.data_dir is None else settings.data_dir).absolute()
    urls = [settings.collector] if settings.collector else collector_urls(str(data_dir))
    named_by = caller() if settings.collector or settings.data_dir else None
    if os.geteuid() == 0:
        _become_reader(named_by, data_dir)
    report = Diagnostics(sys.stderr)
    source = None if settings.collector else data_dir
    with explain_caller(named_by), open_reader(urls, source, report) as reader:
        if sql is not None:
            write_answer(sys.stdout, reader, sql, settings.format)
        else:
            top = read_top(reader, query)
            write_top(sys.stdout, top, query, settings.format)
            for remark in remarks(top, query):
                report(remark)
    return ExitCode.DONE


def _become_reader(named_by: User | None, data_dir: Path) -> None:
    """Become the caller of sudo if they named the source, else the owner of the data directory: the owner could not
    modify files that root creates in the store.
    """
    if named_by is not None:
        give_up_privileges(named_by)
    elif data_dir.exists():
        give_up_privileges(owner_of_directory(data_dir, SERVICE_USERS))


def _sql(words: Sequence[str]) -> str | None:
    """Return the SQL query, None without one. Raise UsageError for other arguments."""
    if not words:
        return None
    if words[0] != "sql":
        raise UsageError(f"unknown argument {words[0]!r}", "write queries as nettop flows sql 'SHOW TABLES'")
    query = " ".join(words[1:]).strip()
    if not query:
        raise UsageError("no query after sql", "write it like nettop flows sql 'SHOW TABLES'")
    return query
