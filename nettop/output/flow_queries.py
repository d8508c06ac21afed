# SPDX-License-Identifier: Apache-2.0
"""Results of flow queries as a table for people, or as CSV or JSON Lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nettop.collector.columns import PROTOCOL_NAMES
from nettop.collector.reader import Reader
from nettop.collector.store.queries import split_format
from nettop.collector.top import AS_KEYS, SUMS, Top, TopQuery
from nettop.query.units import RATIO, UNKNOWN, human
from nettop.settings import Format
from nettop.snapshots.collector import PROTOCOLS
from nettop.snapshots.safe_text import safe_text
from nettop.writing import write_output

_ENGINE_FORMATS = {
    Format.TABLE: "PrettyCompactMonoBlock",
    Format.CSV: "CSVWithNames",
    Format.JSONL: "JSONEachRow",
}
_NAMES_OF_NUMBERS = {"protocol": PROTOCOL_NAMES, "protocol_version": PROTOCOLS}
"""Names of numeric values, by key."""
_NAME = "_name"
"""Suffix of the column with an AS's name, after the column with its number."""
_UNLIMITED = 1 << 12
"""Line width in cells when not writing to a terminal."""
_COVERED_MIN = 0.99
"""Covered part of the period asked for, below which a remark says what is missing."""


def write_answer(stdout: TextIO, reader: Reader, sql: str, form: Format) -> None:
    """Write the result of a query in the format that it names, else in `form`. Raise UsageError.

    Control sequences are escaped in tables and on terminals; programs get the engine's output unchanged.
    """
    sql, named = split_format(sql, "")
    answer = reader.query(sql, named or _ENGINE_FORMATS[form])
    if not named and form is Format.TABLE:
        write_output(stdout, _safe_lines(answer.decode(errors="replace")))
    elif stdout.isatty():
        cells = answer.decode(errors="replace").split("\t")
        write_output(stdout, "\t".join(map(_safe_lines, cells)))
    else:
        write_output(stdout, answer)


def write_top(stdout: TextIO, top: Top, query: TopQuery, form: Format) -> None:
    """Write the rows; a table for people also has the sums of the rows not shown and of all rows."""
    if form is Format.TABLE:
        write_output(stdout, _table(stdout, top, query))
        return
    documents = [_document(row, top, query) for row in top.rows]
    if form is Format.CSV:
        text = _csv(documents, [*_columns(query), *SUMS])
    else:
        lines = (
            json.dumps(document, ensure_ascii=not stdout.isatty(), separators=(",", ":"))
            for document in documents
        )
        text = "".join(f"{line}\n" for line in lines)
    write_output(stdout, _safe_lines(text) if stdout.isatty() else text.encode())


def remarks(top: Top, query: TopQuery) -> Iterator[str]:
    """Yield what the result lacks: hosts and pairs that are not stored individually, and time before the first row."""
    if top.unnamed:
        unit = "" if query.order == "flows" else query.order
        amount, share = human(top.unnamed, unit), human(top.unnamed / top.totals[query.measure], RATIO)
        yield (
            "hosts and pairs that are small within their minute are not stored individually: each, shown or not, may "
            f"have up to {amount} ({share}){' flows' if not unit else ''} more"
        )
    if top.seconds < query.since_s * _COVERED_MIN:
        shown, asked = (timedelta(seconds=round(seconds)) for seconds in (top.seconds, query.since_s))
        yield f"the rows reach back {shown}, not {asked}: none were stored before, or kept (collect --retention)"


def _safe_lines(text: str) -> str:
    return "\n".join(map(safe_text, text.split("\n")))


def _columns(query: TopQuery) -> Iterator[str]:
    """Yield the keys, each AS number followed by its name."""
    for key in query.keys:
        yield key
        if key in AS_KEYS:
            yield key + _NAME


def _document(row: Mapping[str, Any], top: Top, query: TopQuery) -> dict[str, Any]:
    """Return a row with the names of its AS numbers, None if unknown."""
    names = {f"{key}{_NAME}": top.as_names.get(row[key]) for key in AS_KEYS if key in query.keys}
    return {name: names[name] if name in names else row[name] for name in (*_columns(query), *SUMS)}


def _csv(documents: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(document.values() for document in documents)
    return text.getvalue()


def _table(stdout: TextIO, top: Top, query: TopQuery) -> str:
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = list(_columns(query))
    for name in columns:
        table.add_column(name.upper(), overflow="fold")
    for name in ("BYTES", "RATE", "PACKETS", "FLOWS", "SHARE"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in top.rows:
        document = _document(row, top, query)
        table.add_row(*(_cell(name, document[name]) for name in columns), *_amounts(row, top, query))
    unnamed = [""] * (len(columns) - 1)
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
    if key in _NAMES_OF_NUMBERS:
        return Text(_NAMES_OF_NUMBERS[key].get(value, str(value)))
    return Text(safe_text(str(value)) if value not in (None, "", "::") else UNKNOWN)


def _amounts(sums: Mapping[str, Any], top: Top, query: TopQuery) -> Iterator[str]:
    yield human(sums["estimated_bytes"], "bytes")
    yield human(sums["estimated_bytes"] / top.seconds, "bytes/s")
    yield human(sums["estimated_packets"], "packets")
    yield human(sums["flows"], "")
    yield human(sums[query.measure] / top.totals[query.measure] if top.totals[query.measure] else None, RATIO)
