# SPDX-License-Identifier: Apache-2.0
"""Metrics, REST, CSV, JSON Lines, logs, text and screens agree on every field of a row."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from nettop.formats.jsonl import JsonLines, document
from nettop.formats.separated import Separated
from nettop.output.log_lines import TextLines
from nettop.output.table import AlignedTable, word
from nettop.probes.connections.groupings import GROUPERS
from nettop.query.units import UNKNOWN
from nettop.query.view import View
from nettop.serve.metrics.families import series_sets
from nettop.serve.metrics.series import CountedView, GroupIncrements, group_increments
from nettop.snapshots import lenses, view_name
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.histograms import histogram_text
from nettop.snapshots.schema import NO_GROUP, Field, Kind, Lens, Metrics, Table
from nettop.widgets.cells import RowStyle, whole_texts
from nettop.widgets.columns import plan
from tests.unit.build import make_view
from tests.unit.random_frames import random_frame

NAMING = (Kind.KEY, Kind.LABEL, Kind.TEXT, Kind.ENUM, Kind.ADDRESS, Kind.ENDPOINT)
"""Kinds of fields that identify or label a row rather than measure it."""
TABLES = [pytest.param(lens, table, id=view_name(lens, table)) for lens in lenses() for table in lens.tables]


def views_of(table: Table) -> list[View]:
    """Return views of four random frames."""
    return [make_view(random_frame(table, seed), all_rows=True) for seed in range(4)]


def values_of(view: View, name: str) -> list[str | None]:
    """Return the query's value of each row as text; None is unknown."""
    return [None if value is None else str(value) for value in view.values(name, np.arange(view.size))]


def reading_of(lens: Lens, view: View, metrics: Metrics) -> GroupIncrements:
    """Group the rows as a set of metrics does."""
    table = replace(view.table, metrics=(metrics,))
    (declared,) = series_sets(replace(lens, tables=(table,)))
    return group_increments(declared, CountedView(view, np.ones(view.size, bool)))


def of_metrics(lens: Lens, view: View, name: str) -> Counter[str]:
    """Count rows by the label's value in the metrics."""
    reading = reading_of(lens, view, Metrics((name,), rows="rows"))
    return Counter({key[0]: int(rows) for key, rows in zip(reading.keys, reading.rows, strict=True) if rows})


def in_metrics(lens: Lens, view: View, name: str) -> dict[str, float | None]:
    """Return each row's number in the metrics by its key; None is unknown."""
    reading = reading_of(lens, view, Metrics((view.table.key,), (name,)))
    numbers = zip(reading.keys, reading.sums[name], reading.known[name], strict=True)
    return {key: float(number) if is_known else None for (key,), number, is_known in numbers}


def in_rest(view: View, name: str) -> list[Any]:
    """Return the value of each row in REST."""
    document_text = "".join(document({"view": ""}, view, [name], np.arange(view.size)))
    return [row[name] for row in json.loads(document_text)["rows"]]


def in_lines(view: View, name: str) -> list[Any]:
    """Return the value of each row in JSON Lines."""
    lines = JsonLines((name,)).lines(view, np.arange(view.size)).splitlines()
    return [json.loads(line)[name] for line in lines]


def in_csv(view: View, name: str) -> list[str | None]:
    """Return the value of each row in CSV; None is an empty one."""
    separated = Separated((name,))
    text = separated.header + separated.lines(view, np.arange(view.size))
    return [row[name] or None for row in csv.DictReader(io.StringIO(text))]


def in_log(lens: Lens, view: View, name: str) -> list[str]:
    """Return the value of each row in a log."""
    logged = TextLines(lens.id, view.table, "row", (name,)).lines(view, np.arange(view.size)).splitlines()
    return [line.rpartition(f" {name}=")[2] for line in logged]


def on_screens(view: View, name: str) -> list[str]:
    """Return the cell of each row on the screens."""
    columns = [column for column in plan(view.table, (name,), 200, extra=False) if column.sort == name]
    (shown,) = whole_texts(view, columns, np.arange(view.size), RowStyle())
    return shown


def as_text(values: Iterable[Any]) -> list[str | None]:
    """Convert JSON values to text."""
    return [None if value is None else str(value) for value in values]


@pytest.mark.parametrize(("lens", "table"), TABLES)
def test_frontends_agree(lens: Lens, table: Table) -> None:
    """Frontends agree on the value of each row, and on which are unknown."""
    labels = [field.name for field in table.fields if field.kind in NAMING]
    for view, name in product(views_of(table), labels):
        check_label(lens, view, name)


def check_label(lens: Lens, view: View, name: str) -> None:
    """Compare what each frontend has of one field."""
    values = values_of(view, name)
    known = Counter(NO_GROUP if value is None else value for value in values)
    if view.table is not SOCKETS or name not in GROUPERS:  # socket metrics group by these
        assert of_metrics(lens, view, name) == known
    assert as_text(in_rest(view, name)) == values
    assert as_text(in_lines(view, name)) == values
    assert in_csv(view, name) == values
    words = [UNKNOWN if value is None else word(value) for value in values]
    aligned = AlignedTable(view.table, (name,))(view).split()[1:]
    assert aligned == [words[place] for place in view.order]
    assert in_log(lens, view, name) == words
    assert on_screens(view, name) == [UNKNOWN if value is None else value for value in values]


@pytest.mark.parametrize(("lens", "table"), TABLES)
def test_frontends_agree_on_numbers(lens: Lens, table: Table) -> None:
    """Formats agree on numbers, times, groups and histograms; screens agree on which are unknown."""
    numbers = [field for field in table.fields if field.kind not in NAMING]
    for view, field in product(views_of(table), numbers):
        check_number(lens, view, field)


def check_number(lens: Lens, view: View, field: Field) -> None:
    """Compare what each format has of one field."""
    name = field.name
    values = json.loads(json.dumps(view.values(name, np.arange(view.size))))
    assert in_rest(view, name) == values
    assert in_lines(view, name) == values
    texts = [histogram_text(value) if isinstance(value, list) else value for value in values]
    assert in_csv(view, name) == as_text(texts)
    if name != "time":  # with which each line begins
        words = [UNKNOWN if text is None else word(str(text)) for text in texts]
        assert in_log(lens, view, name) == words
    if field.kind is not Kind.GROUP:  # of which screens show the parts
        assert [cell == UNKNOWN for cell in on_screens(view, name)] == [value is None for value in values]
    if field.kind in (Kind.COUNTER, Kind.GAUGE):
        assert in_metrics(lens, view, name) == dict(zip(values_of(view, view.table.key), values, strict=True))
