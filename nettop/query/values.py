# SPDX-License-Identifier: Apache-2.0
"""Values of some rows as native Python types, for every frontend."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

import numpy as np

from nettop.query.address import address_bytes, address_text, endpoint_text, is_link_local
from nettop.query.columns import Columns
from nettop.query.times import rfc3339
from nettop.snapshots.arrays import Array, Index, Mask, as_list
from nettop.snapshots.schema import Field, Kind
from nettop.snapshots.snapshot import known


def values_of(columns: Columns, name: str, at: Index) -> list[Any]:
    """Return a column's values for the rows at `at`, as native Python types; None is unknown.

    Numbers are in base units; an enum is its label, an address its text, a time RFC 3339. A histogram is a list of
    [low, high, count] for each nonempty bucket, which counts numbers ≥ `low` and < `high` (None for the last).
    """
    if name in columns.missing:
        return [None] * len(at)
    columns, at = columns.some(at)
    field = columns.table.by_name.get(name)
    make = None if field is None else _OF_KIND.get(field.kind)
    return _numbers(columns, name, at) if field is None or make is None else make(columns, field, at)


def _numbers(columns: Columns, name: str, at: Index) -> list[Any]:
    column = columns.column_at(name, at)
    values = as_list(column.numbers)
    return values if column.known.all() else _with_gaps(values, column.known)


def _times(columns: Columns, field: Field, at: Index) -> list[Any]:
    return [None if ns is None else rfc3339(ns) for ns in _numbers(columns, field.name, at)]


def _quantiles(columns: Columns, field: Field, at: Index) -> list[Any]:
    # A bucket's representative value is an integer.
    return [None if value is None else int(value) for value in _numbers(columns, field.name, at)]


def _histograms(columns: Columns, field: Field, at: Index) -> list[Any]:
    counts, edges = columns.histogram_counts(field.name), columns.buckets(field.name).edges
    ends = [*edges[1:], None]
    values = [
        [[edges[place], ends[place], int(row[place])] for place in as_list(np.flatnonzero(row))]
        for row in counts.numbers[at]
    ]
    return _with_gaps(values, counts.known[at])


def _texts(columns: Columns, field: Field, at: Index) -> list[Any]:
    texts = columns.now.texts[field.name]
    codes = columns.raw(field.name)[at]
    # Texts are few compared with the rows of a whole table, and many compared with those of a screen.
    if len(at) < len(texts):
        return [texts[code] if code < len(texts) else None for code in as_list(codes)]
    return _look_up([*texts, None], np.minimum(codes, len(texts)))


def _enums(columns: Columns, field: Field, at: Index) -> list[Any]:
    last = max(field.labels, default=0)
    labels = [field.labels.get(number) for number in range(last + 2)]
    return _look_up(labels, np.minimum(columns.raw(field.name)[at], last + 1))


def _addresses(columns: Columns, field: Field, at: Index) -> list[Any]:
    column = columns.raw(field.name)[at]
    return _with_gaps(list(map(address_text, address_bytes(column))), known(column))


def _endpoints(columns: Columns, field: Field, at: Index) -> list[Any]:
    hosts, ports = endpoint_hosts(columns, field, at), _numbers(columns, field.parts[1], at)
    return [f"{host}{'*' if port is None else port}" for host, port in zip(hosts, ports, strict=True)]


def endpoint_hosts(columns: Columns, field: Field, at: Index) -> list[str]:
    """Return what precedes the ports of an endpoint column for the rows at `at`: `address%zone:`."""
    address, _ = field.parts
    raws = address_bytes(columns.raw(address)[at])
    hosts = list(map(address_text, raws))
    if columns.has_names:
        hosts = [columns.name_of(raw) or host for raw, host in zip(raws, hosts, strict=True)]
    no_port = repeat("")
    if not (field.zone and columns.known(field.zone)[at].any()):
        return list(map(endpoint_text, hosts, no_port))
    zones = values_of(columns, field.zone, at)
    if not field.binds:
        zones = [zone if is_link_local(raw) else None for raw, zone in zip(raws, zones, strict=True)]
    return list(map(endpoint_text, hosts, no_port, zones))


def _groups(columns: Columns, field: Field, at: Index) -> list[Any]:
    parts = [values_of(columns, part, at) for part in field.parts]
    return [" ".join([str(v) for v in row if v is not None]) or None for row in zip(*parts, strict=True)]


_OF_KIND: dict[Kind, Callable[[Columns, Field, Index], list[Any]]] = {
    Kind.TIME: _times,
    Kind.TEXT: _texts,
    Kind.ENUM: _enums,
    Kind.ADDRESS: _addresses,
    Kind.ENDPOINT: _endpoints,
    Kind.GROUP: _groups,
    Kind.HISTOGRAM: _histograms,
    Kind.QUANTILE: _quantiles,
}
"""Function that returns the values of each kind of field; all other kinds are numbers."""


def _with_gaps(values: list[Any], present: Mask) -> list[Any]:
    """Set values to None where they are not present."""
    for at in as_list(np.flatnonzero(~present)):
        values[at] = None
    return values


def _look_up(choices: list[str | None], at: Array) -> list[Any]:
    table = np.empty(len(choices), object)
    table[:] = choices
    return as_list(table[at])
