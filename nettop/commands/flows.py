# SPDX-License-Identifier: Apache-2.0
"""`nettop flows`: options, and querying the collected flows."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nettop.commands.invoker import SERVICE_USERS, User, caller, explain_caller, owner_of_directory
from nettop.commands.options import (
    SourceOf,
    checked_word,
    complete_list,
    completer,
    option,
    parse_count,
    parse_duration,
    require_output,
    split_names,
)
from nettop.commands.privilege import give_up_privileges
from nettop.diagnostics import Diagnostics
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.settings import DEFAULT_QUERY_LISTEN, Format, collector_urls, default_flows_dir

HELP = "Query the flows stored by nettop collect: show the top talkers, or run SQL."

EXAMPLES = """[bold]Examples[/bold]

nettop flows  [dim]top pairs of hosts in the last hour[/dim]

nettop flows --top service_port,protocol --since 1d --limit 20

nettop flows --top src_as --by packets --since 4w --format csv

nettop flows sql 'SELECT src, sum(bytes) FROM flows_raw GROUP BY src ORDER BY 2 DESC LIMIT 5'

nettop flows sql 'DESCRIBE flows_raw'  [dim]list the columns; SHOW TABLES lists the tables[/dim]

BYTES and PACKETS are multiplied by the sampling rate where it is known. Queries are read-only."""


def _complete_top(incomplete: str) -> list[str]:
    from nettop.flows.top import KEYS

    return complete_list(KEYS, incomplete)


# fmt: off
@dataclass(frozen=True, slots=True)
class FlowsOptions:
    """Options and arguments as given, in the order of --help."""

    words: Annotated[list[str] | None, typer.Argument(metavar="[sql QUERY]", show_default=False,
                                                      help="Run this query in ClickHouse SQL instead of --top")] = None
    top: Annotated[str, option("--top", metavar="A,B,C", autocompletion=_complete_top,
                               help="Group by these columns: src, dst, service_port, protocol, exporter, src_as … "
                               "(src,dst)")] = "src,dst"
    since: Annotated[str, option("--since", metavar="TIME", help="Look back this far: 10m, 6h, 2d, 4w (1h)")] = "1h"
    by: Annotated[str, option("--by", metavar="bytes|packets|flows", autocompletion=completer(("bytes", "packets",
                              "flows")), help="Rank by bytes, packets or flows (bytes)")] = "bytes"
    limit: Annotated[str, option("--limit", metavar="N", help="Show at most N rows (10)")] = "10"
    format: Annotated[str, option("--format", metavar="table|csv|jsonl", autocompletion=completer(Format),
                                  help="Output format: table for people, csv or jsonl for programs (table)")] = "table"
    collector: Annotated[str | None, option("--collector", metavar="URL",
                                            help="Collector to query: http://HOST:PORT or unix:PATH (socket in the "
                                            f"data directory, else {DEFAULT_QUERY_LISTEN})")] = None
    data_dir: Annotated[str | None, option("--data-dir", metavar="DIR",
                                           help="Data directory of nettop collect")] = None
    # fmt: on


def start_flows(options: FlowsOptions, _source_of: SourceOf) -> ExitCode:
    """Run the query and write its result. Raise NettopError if that fails."""
    form = Format(checked_word("format", options.format, list(Format)))
    limit = parse_count("--limit", options.limit)
    since_s = math.ceil(parse_duration("--since", options.since, "10m, 6h, 2d or 4w"))
    sql = _sql(options.words or [])
    with importing():
        from nettop.flows.reader import open_reader
        from nettop.flows.top import ORDERS, TopQuery, checked_keys, read_top
        from nettop.output.flow_queries import remarks, write_answer, write_top

    query = TopQuery(
        checked_keys(split_names(options.top) or ()), since_s, checked_word("order", options.by, list(ORDERS)), limit
    )
    require_output()
    data_dir = Path(default_flows_dir() if options.data_dir is None else options.data_dir).absolute()
    urls = [options.collector] if options.collector else collector_urls(str(data_dir))
    named_by = caller() if options.collector or options.data_dir else None
    if os.geteuid() == 0:
        _become_reader(named_by, data_dir)
    report = Diagnostics(sys.stderr)
    source = None if options.collector else data_dir
    with explain_caller(named_by), open_reader(urls, source, report) as reader:
        if sql is not None:
            write_answer(sys.stdout, reader, sql, form)
        else:
            top = read_top(reader, query)
            write_top(sys.stdout, top, query, form)
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


def _sql(words: list[str]) -> str | None:
    """Return the SQL query, None without one. Raise UsageError for other arguments."""
    if not words:
        return None
    if words[0] != "sql":
        raise UsageError(f"unknown argument {words[0]!r}", "write queries as nettop flows sql 'SHOW TABLES'")
    query = " ".join(words[1:]).strip()
    if not query:
        raise UsageError("no query after sql", "write it like nettop flows sql 'SHOW TABLES'")
    return query
