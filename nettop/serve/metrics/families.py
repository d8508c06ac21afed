# SPDX-License-Identifier: Apache-2.0
"""Names of metrics, derived from the lens declarations: base units, a fixed word order, one label per concept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from nettop.query.filter import Filter, parse_filter
from nettop.query.units import TIMES
from nettop.snapshots import view_name
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.schema import ALL_EDGES, Field, Kind, Lens, Metrics, Spread, Table

NAMESPACE = "nettop"
DIRECTION = "direction"
ROWS = ""
"""In place of a column: the number of rows."""

_BYTES = {"bytes": ("bytes",), "bytes/s": ("bytes", "per", "second")}
_DIRECTIONS = ("received", "sent")
_NAMING = frozenset({Kind.ENUM, Kind.TEXT, Kind.LABEL, Kind.ADDRESS, Kind.KEY})
_NUMBERS = frozenset({Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM})


@dataclass(frozen=True)
class Family:
    """A metric: its name (a counter's without `_total`) and its columns by the value of its `label`.

    With a single column, `label` and its value are empty. A column's number is `divisor` times the metric's.
    """

    name: str
    help: str
    kind: Kind
    columns: tuple[tuple[str, str], ...]
    label: str = ""
    divisor: float = 1.0
    buckets: Buckets | None = None
    edges_within: tuple[float, float] = ALL_EDGES
    """Range of the edges that are listed, in the column's unit."""

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Edges of a histogram as values of `le`, empty if not listed; the last is +Inf."""
        assert self.buckets is not None, f"{self.name} is not a histogram"
        least, most = self.edges_within
        edges = (self.buckets.edges[at] for at in chosen_edges(self.buckets))
        return (*(repr(edge / self.divisor) if least <= edge <= most else "" for edge in edges), "+Inf")

    @property
    def has_quantiles(self) -> bool:
        """Whether it is a histogram that lists buckets besides +Inf."""
        return self.buckets is not None and any(self.edges[:-1])

    @property
    def sample_name(self) -> str:
        """Name of its samples; those of a histogram add _bucket, _sum and _count."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


@dataclass(frozen=True)
class SeriesSet:
    """Metrics with the same labels, made from the rows of one table."""

    lens: Lens
    table: Table
    metrics: Metrics
    families: tuple[Family, ...]
    rows: Family | None
    """Gauge of the number of rows, if declared."""
    filter: Filter
    """Selects the rows that count."""

    @property
    def all_families(self) -> tuple[Family, ...]:
        """All families; the one for the number of rows is last."""
        return self.families if self.rows is None else (*self.families, self.rows)


def series_sets(lens: Lens) -> list[SeriesSet]:
    """Return the metrics made from a lens's tables."""
    return [
        _series_set(lens, table, metrics)
        for table in lens.tables
        for metrics in (_default_metrics(table) if table.metrics is None else table.metrics)
    ]


def count_families(lens: Lens) -> list[Family]:
    """Return the metrics of a lens as a whole."""
    return [_family(lens.id, [field]) for field in lens.counts]


def chosen_edges(buckets: Buckets) -> range:
    """Return the positions of the bucket edges that a classic histogram lists, each four times the previous one.

    The count below an edge is the sum of the buckets before it.
    """
    return range(1, buckets.count, 2 << buckets.divided_by_bits)


def _default_metrics(table: Table) -> tuple[Metrics, ...]:
    """Return the metrics of a table without a declaration: each number, labelled by all identifying fields except the
    id."""
    labels = tuple(f.name for f in table.fields if f.kind in _NAMING and f.name != "id")
    values = tuple(f.name for f in table.stored if f.kind in _NUMBERS)
    return () if table.append or not (labels and values) else (Metrics(labels, values),)


def _series_set(lens: Lens, table: Table, metrics: Metrics) -> SeriesSet:
    prefix = metrics.prefix or view_name(lens, table).replace(".", "_")
    grouped: dict[str, list[Field]] = {}
    families = []
    for value in metrics.values:
        if isinstance(value, Spread):
            families.append(_spread(prefix, value, table))
        else:
            field = table.by_name[value]
            grouped.setdefault(_name(prefix, field), []).append(field)
    families += [
        _family(prefix, fields, metrics.edges.get(fields[0].name, ALL_EDGES)) for fields in grouped.values()
    ]
    rows = None
    if metrics.rows:
        name = f"{NAMESPACE}_{prefix}" if prefix == metrics.rows else f"{NAMESPACE}_{prefix}_{metrics.rows}"
        rows = Family(name, f"current {metrics.rows}", Kind.GAUGE, (("", ROWS),))
    return SeriesSet(lens, table, metrics, tuple(families), rows, parse_filter(table, metrics.filter))


def _family(prefix: str, fields: list[Field], edges_within: tuple[float, float] = ALL_EDGES) -> Family:
    """Return the metric of one column, or of one column per direction."""
    first = fields[0]
    directions = [_direction(field) for field in fields]
    text = first.help
    if any(directions):
        text = "; ".join(
            f"{direction}: {field.help}" for direction, field in zip(directions, fields, strict=True)
        )
    return Family(
        _name(prefix, first),
        text,
        first.kind,
        tuple((direction, field.name) for direction, field in zip(directions, fields, strict=True)),
        DIRECTION if any(directions) else "",
        TIMES.get(first.unit, 1.0),
        first.buckets,
        edges_within,
    )


def _spread(prefix: str, spread: Spread, table: Table) -> Family:
    columns = tuple(spread.columns.items())
    first = replace(table.by_name[columns[0][1]], name=spread.name, help=spread.help)
    return replace(_family(prefix, [first]), columns=columns, label=spread.label)


def _direction(field: Field) -> str:
    """Return the direction that a column counts, if it is the last word of its name, else ""."""
    last = field.name.rpartition("_")[2]
    return last if last in _DIRECTIONS and last != field.name else ""


def _name(prefix: str, field: Field) -> str:
    """Return the name of a field's metric: `bytes_sent` of bandwidth is nettop_bandwidth_bytes, `time_ns` …_seconds."""
    before = prefix.split("_")
    dropped = {_direction(field), *before}
    unit: Iterable[str] = _BYTES.get(field.unit, ())
    if field.unit in _BYTES:
        dropped.add("bytes")
    if field.unit in TIMES:
        dropped |= {"time", field.unit}
        unit = ("seconds",)
    words = [word for word in (field.former or field.name).split("_") if word not in dropped]
    return "_".join([NAMESPACE, *before, *words, *unit])
