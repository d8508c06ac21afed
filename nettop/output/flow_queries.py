# SPDX-License-Identifier: Apache-2.0
"""What collected flows say, as a table for people, or as CSV or JSON Lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nettop.flows.columns import PROTOCOL_NAMES
from nettop.flows.reader import Reader
from nettop.flows.top import REST, SUMS, Top, TopQuery
from nettop.query.units import RATIO, UNKNOWN, human
from nettop.settings import Format
from nettop.snapshots.safe_text import safe_text
from nettop.writing import write_output

_FORMS = {Format.TABLE: "PrettyCompactMonoBlock", Format.CSV: "CSVWithNames", Format.JSONL: "JSONEachRow"}
_UNLIMITED = 1 << 12
"""Cells of a line that is not written to a terminal."""


def write_answer(stdout: TextIO, reader: Reader, sql: str, form: Format) -> None:
    """Write the answer to a query; what could control a terminal is escaped where one shows it. Raises UsageError."""
    text = reader.query(sql, _FORMS[form]).decode(errors="replace")
    if form is Format.TABLE or stdout.isatty():
        text = "".join(safe_text(line.rstrip("\n")) + "\n" for line in text.splitlines(keepends=True))
    write_output(stdout, text)


def write_top(stdout: TextIO, top: Top, query: TopQuery, form: Format) -> None:
    """Write the rows; a table for people also has what is not shown, and the sum of all."""
    if form is Format.TABLE:
        write_output(stdout, _table(stdout, top, query))
    elif form is Format.CSV:
        write_output(stdout, _csv(top, (*query.keys, *SUMS)))
    else:
        lines = (json.dumps(row, ensure_ascii=not stdout.isatty(), separators=(",", ":")) for row in top.rows)
        write_output(stdout, "".join(f"{line}\n" for line in lines))


def _csv(top: Top, columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row[name] for name in columns] for row in top.rows)
    return text.getvalue()


def _table(stdout: TextIO, top: Top, query: TopQuery) -> str:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in query.keys:
        table.add_column(key.upper(), overflow="fold")
    for name in ("BYTES", "RATE", "PACKETS", "FLOWS", "SHARE"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in top.rows:
        table.add_row(*(_cell(key, row[key]) for key in query.keys), *_amounts(row, top, query))
    unnamed = [""] * (len(query.keys) - 1)
    others = {name: top.totals[name] - sum(row[name] for row in top.rows) for name in SUMS}
    if any(others.values()):
        table.add_row("(others)", *unnamed, *_amounts(others, top, query), style="dim")
    table.add_row("(all)", *unnamed, *_amounts(top.totals, top, query), style="bold")
    width = None if stdout.isatty() else _UNLIMITED
    console = Console(file=stdout, width=width, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _cell(key: str, value: Any) -> Text:
    if key == "protocol":
        return Text(PROTOCOL_NAMES.get(value, str(value)))
    if key in ("src", "dst") and value == REST:
        return Text("(smaller)")
    return Text(safe_text(str(value)) or UNKNOWN)


def _amounts(sums: Mapping[str, Any], top: Top, query: TopQuery) -> Iterator[str]:
    order = query.order if query.order == "flows" else f"estimated_{query.order}"
    yield human(sums["estimated_bytes"], "bytes")
    yield human(sums["estimated_bytes"] / query.since_s, "bytes/s")
    yield human(sums["estimated_packets"], "packets")
    yield human(sums["flows"], "")
    yield human(sums[order] / top.totals[order] if top.totals[order] else None, RATIO)
