# SPDX-License-Identifier: Apache-2.0
"""The declarations: every lens and table follows the rules that the frontends rely on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from nettop.errors import UsageError
from nettop.query.filter import parse_filter
from nettop.query.query import parse_sort
from nettop.snapshots import find_table, lenses, views
from nettop.snapshots.connections import LENS, SOCKETS
from nettop.snapshots.schema import COMPOSITES, RATE, Kind, Table, row_dtype

TABLES = [table for lens in lenses() for table in lens.tables]
per_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


@per_table
def test_names_are_unique(table: Table) -> None:
    """A name means one column, including rates."""
    assert len(set(table.names)) == len(table.names)


@per_table
def test_every_field_explains_itself(table: Table) -> None:
    """Title and help are never empty, and help is one line."""
    for field in table.fields:
        assert field.title
        assert field.help
        assert "\n" not in field.help
        assert field.width >= 4


@per_table
def test_composites_are_made_of_fields_and_store_nothing(table: Table) -> None:
    """A composite consists of its table's fields; only other columns have a dtype."""
    for field in table.fields:
        assert field.is_composite == (field.kind in COMPOSITES) == (not field.dtype)
        assert bool(field.parts) == field.is_composite
        assert all(not table.by_name[part].is_composite for part in field.parts)


@per_table
def test_default_columns_order_and_filter_exist(table: Table) -> None:
    """A table's defaults use its own names."""
    for name in (*table.screen, *table.text, table.key):
        assert name in table.names
    parse_sort(table, table.sort)
    parse_sort(table, table.text_sort)
    parse_filter(table, table.default_filter)
    assert table.by_name[table.key].kind is Kind.KEY


@per_table
def test_counters_and_their_sums_have_rates(table: Table) -> None:
    """`NAME_per_s` exists exactly if NAME is a counter or a sum, and sums consist of counters."""
    growing = {field.name for field in table.fields if field.kind in (Kind.COUNTER, Kind.SUM)}
    assert {name.removesuffix(RATE) for name in table.names if name.endswith(RATE)} == growing
    for field in table.fields:
        if field.kind is Kind.SUM:
            assert {table.by_name[part].kind for part in field.parts} == {Kind.COUNTER}


@per_table
def test_quantiles_are_made_of_histograms(table: Table) -> None:
    """A histogram's dtype is that of its buckets; a quantile has its unit, and a share from 0 to 1."""
    for field in table.fields:
        assert (field.buckets is not None) == (field.kind is Kind.HISTOGRAM) == (not field.is_sortable)
        if field.buckets is not None:
            assert np.dtype(field.dtype) == np.dtype(field.buckets.dtype)
        if field.kind is Kind.QUANTILE:
            (histogram,) = (table.by_name[part] for part in field.parts)
            assert (histogram.kind, histogram.unit) == (Kind.HISTOGRAM, field.unit)
            assert field.name in table.quantiles_of(histogram.name)
            assert 0 <= field.quantile <= 1


@per_table
def test_unknown_has_a_place_beside_the_values(table: Table) -> None:
    """Stored numbers are unsigned or float, and no label of an enum has the value for unknown."""
    for field in table.stored:
        dtype = np.dtype(field.dtype).base
        assert dtype.kind in "uf"
        if field.kind is Kind.ENUM:
            assert max(field.labels) < np.iinfo(dtype).max


@per_table
def test_rows_have_no_padding_but_at_the_end(table: Table) -> None:
    """Fields are ordered by size without gaps, each aligned, and rows stay aligned in an array."""
    fields = table.dtype.fields or {}
    places = sorted((place[1], place[0].itemsize, place[0].base.itemsize) for place in fields.values())
    ends = [offset + size for offset, size, _ in places]
    assert [offset for offset, _, _ in places] == [0, *ends[:-1]]
    assert all(offset % alignment == 0 for offset, _, alignment in places)
    assert table.dtype.itemsize % 8 == 0


def test_carried_columns_stand_behind_the_tables_own() -> None:
    """A probe's own columns do not move the table's, so a copy of the first bytes drops them."""
    carried = row_dtype(SOCKETS, (("start_ns", "u8"), ("comm", "S16")))
    for name in SOCKETS.dtype.names or ():
        assert carried.fields is not None
        assert SOCKETS.dtype.fields is not None
        assert carried.fields[name] == SOCKETS.dtype.fields[name]
    assert carried["comm"] == np.dtype("S16")
    assert carried.itemsize % 8 == 0


def test_find_table_by_lens_and_by_lens_and_table() -> None:
    """`connections` names its main table, which has a long name too."""
    assert find_table("connections") == (LENS, SOCKETS)
    assert find_table("connections.sockets") == (LENS, SOCKETS)
    assert "connections" in views()


@pytest.mark.parametrize("view", ["connection", "connections.socks", "", "connections.x"])
def test_an_unknown_view_is_a_usage_error(view: str) -> None:
    """The error for an unknown view lists the known ones."""
    with pytest.raises(UsageError, match="unknown view"):
        find_table(view)


def test_lenses_have_one_id_order_and_digit_each() -> None:
    """Two lenses never share a key, a place or a name."""
    for attribute in ("id", "order", "digit"):
        values = [getattr(lens, attribute) for lens in lenses()]
        assert len(set(values)) == len(values)


def test_declaring_a_lens_loads_no_numpy() -> None:
    """`--help` lists the fields without loading numpy."""
    program = "import sys, nettop.snapshots.connections; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
