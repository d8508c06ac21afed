# SPDX-License-Identifier: Apache-2.0
"""A row is the same everywhere: metrics, REST, CSV, JSON Lines, logs, text and screens agree on each of its fields."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nettop.formats.document import document
from nettop.formats.jsonl import JsonLines
from nettop.formats.separated import Separated
from nettop.output.log_lines import TextLines
from nettop.output.table import AlignedTable, word
from nettop.query.groupings import FOLDS
from nettop.query.units import UNKNOWN
from nettop.query.view import View
from nettop.serve.metrics.families import series_sets
from nettop.serve.metrics.series import Counted, Grouped, grouped
from nettop.snapshots import lenses
from nettop.snapshots.connections import NO_GROUP, SOCKETS
from nettop.snapshots.histograms import histogram_text
from nettop.snapshots.schema import Field, Kind, Lens, Metrics, Table
from nettop.widgets.cells import RowStyle, whole_texts
from nettop.widgets.columns import plan
from tests.unit.build import make_view
from tests.unit.random_frames import random_frame

NAMING = (Kind.KEY, Kind.LABEL, Kind.TEXT, Kind.ENUM, Kind.ADDRESS, Kind.ENDPOINT)
"""The kinds of fields that say what a row is, rather than how much."""
FIELDS = [(lens, table, field) for lens in lenses() for table in lens.tables for field in table.fields]
LABELS = [each for each in FIELDS if each[2].kind in NAMING]
NUMBERS = [each for each in FIELDS if each[2].kind not in NAMING]


def name_of(field: Lens | Table | Field) -> str:
    """The part of a test's name for one of its parameters."""
    return field.id if isinstance(field, Lens) else field.name


def values_of(view: View, name: str) -> list[str | None]:
    """What the query says of each row, as text; None is unknown."""
    return [None if value is None else str(value) for value in view.values(name, np.arange(view.size))]


def reading_of(lens: Lens, view: View, metrics: Metrics) -> Grouped:
    """Return what a set of metrics reads of the rows."""
    table = replace(view.table, metrics=(metrics,))
    (declared,) = series_sets(replace(lens, tables=(table,)))
    return grouped(declared, Counted(view, np.ones(view.size, bool)))


def of_metrics(lens: Lens, view: View, name: str) -> Counter[str]:
    """How many rows each value of the label has in the metrics."""
    reading = reading_of(lens, view, Metrics((name,), rows="rows"))
    return Counter({key[0]: int(rows) for key, rows in zip(reading.keys, reading.rows, strict=True) if rows})


def in_metrics(lens: Lens, view: View, name: str) -> dict[str, float | None]:
    """What each row has in the metrics, by its key; None is unknown."""
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
    """Values of JSON as text."""
    return [None if value is None else str(value) for value in values]


@pytest.mark.parametrize(("lens", "table", "field"), LABELS, ids=name_of)
def test_frontends_agree(lens: Lens, table: Table, field: Field) -> None:
    """On the value of each row, and on what is unknown."""
    name = field.name
    for seed in range(4):
        view = make_view(random_frame(table, seed), all_rows=True)
        values = values_of(view, name)
        known = Counter(NO_GROUP if value is None else value for value in values)
        if table is not SOCKETS or name not in FOLDS:  # metrics of sockets group by these
            assert of_metrics(lens, view, name) == known
        assert as_text(in_rest(view, name)) == values
        assert as_text(in_lines(view, name)) == values
        assert in_csv(view, name) == values
        words = [UNKNOWN if value is None else word(value) for value in values]
        aligned = AlignedTable(table, (name,))(view).split()[1:]
        assert aligned == [words[place] for place in view.order]
        assert in_log(lens, view, name) == words
        assert on_screens(view, name) == [UNKNOWN if value is None else value for value in values]


@pytest.mark.parametrize(("lens", "table", "field"), NUMBERS, ids=name_of)
def test_frontends_agree_on_numbers(lens: Lens, table: Table, field: Field) -> None:
    """And on times, groups and histograms: the formats have the same, the screens what is unknown."""
    name = field.name
    for seed in range(4):
        view = make_view(random_frame(table, seed), all_rows=True)
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
            assert in_metrics(lens, view, name) == dict(zip(values_of(view, table.key), values, strict=True))
