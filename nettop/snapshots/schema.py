# SPDX-License-Identifier: Apache-2.0
"""How a lens is declared: Field, Table, Hook, Loss, Option, Lens. Imports numpy only when a dtype is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nettop.snapshots.histograms import Buckets

if TYPE_CHECKING:
    import numpy as np


class Kind(Enum):
    """What a field is; every frontend derives its behaviour from it."""

    KEY = "key"
    """Identifies the row, by a number below 2⁵³ (see row_ids): JSON readers keep it as it is."""
    LABEL = "label"
    """A number that names something (a port, a PID): never summed, never a rate."""
    TEXT = "text"
    """A code into the table of distinct values that travels with the rows."""
    ADDRESS = "address"
    """16 bytes in network order, IPv4 as ::ffff:a.b.c.d; two big-endian u64 halves."""
    GAUGE = "gauge"
    """A measured value that goes up and down."""
    COUNTER = "counter"
    """A total since the row began; `NAME_per_s` is its rate."""
    TIME = "time"
    """Nanoseconds of wall clock since 1970, UTC."""
    ENUM = "enum"
    """One of `labels`."""
    HISTOGRAM = "histogram"
    """Counts for each of the field's `buckets`, since the row began; the unit is that of what is counted."""
    QUANTILE = "quantile"
    """Composite of a histogram: the number that a share of it lies below, in total or in what the last interval
    added."""
    ENDPOINT = "endpoint"
    """Composite of an address and a port."""
    RATIO = "ratio"
    """Composite: the first part divided by the second: of the totals, or of what the last interval added."""
    SUM = "sum"
    """Composite of counters: the sum of its parts, as far as they are known; `NAME_per_s` is its rate."""
    GROUP = "group"
    """Composite that shows its parts side by side, as one column of a screen."""


BEGAN = "began"
"""A column that rows may carry: 1 where the source saw the row begin, and so all that it counted since it was at 0."""

COMPOSITES = frozenset({Kind.ENDPOINT, Kind.RATIO, Kind.SUM, Kind.GROUP, Kind.QUANTILE})
RATE = "_per_s"
BAR_TITLE = "RATE"
"""The title of the bar that stands for the rate of what is watched."""


@dataclass(frozen=True, slots=True)
class Field:
    """One column, declared once: the screens, plain text, JSON, filters and documentation all read it here.

    `unit` is a base unit ("bytes", "packets", "us", "bytes/s", "ns"); `dtype` is numpy's word for the stored
    value. Unknown is stored as the largest value of an unsigned dtype, or as NaN. `tone` is its colour on screens
    ("sent", "received" or "warn"; by importance where empty), `rate_title` the title of a counter's rate. A histogram
    has `buckets`, a quantile the share of its part that lies below it, `quantile`: 1 for the largest. `lens` is the
    id of another lens that knows the value: it is attached too while the column is shown. `zone` is the column with the
    device on whose link a link-local address is meant; an end that `binds` to a device is shown with it in any case.
    """

    name: str
    kind: Kind
    title: str
    help: str
    dtype: str = ""
    unit: str = ""
    width: int = 10
    importance: int = 50
    formula: str = ""
    labels: Mapping[int, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    tone: str = ""
    rate_title: str = ""
    buckets: Buckets | None = None
    quantile: float = 0.0
    lens: str = ""
    zone: str = ""
    binds: bool = False

    @property
    def is_composite(self) -> bool:
        """True where nothing is stored: the value is made from `parts`."""
        return self.kind in COMPOSITES

    @property
    def has_rate(self) -> bool:
        """True where `NAME_per_s` is a column too."""
        return self.kind in (Kind.COUNTER, Kind.SUM)

    @property
    def is_sortable(self) -> bool:
        """True where one value is more than another: a histogram is not, its quantiles are."""
        return self.kind is not Kind.HISTOGRAM


@dataclass(frozen=True, slots=True)
class Spread:
    """Columns of one unit that are one metric, by the value of its `label`. `name` is that of the metric, as a field's
    would be.
    """

    name: str
    label: str
    columns: Mapping[str, str]
    help: str


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics that are made of a table: a series for each combination of values that `labels` have in its rows.

    A label is a field, or one of the GROUPINGS of sockets. `values` are counters, gauges and histograms, summed over
    the rows of a series; of gauges of time it is the longest. `rows` names a gauge of how many rows there are. Metrics
    are named after `prefix`, by default that of the view. Of a set that has a name, `top`, only those series are listed
    of which the first value is largest, `most` of them (--top NAME=N), and one for all others. Of other sets series
    beyond `most` are in that one too.
    """

    labels: tuple[str, ...]
    values: tuple[str | Spread, ...] = ()
    rows: str = ""
    prefix: str = ""
    top: str = ""
    most: int = 1000


@dataclass(frozen=True, slots=True)
class Trouble:
    """A kind of trouble: the rows of a table that pass a `filter`, which the text of `--filter` shows too.

    Headlines name it from `least` rows on; from fewer on, `least_growing`, while they become more. Shorter differences
    than `least_s` say nothing of it.
    """

    name: str
    filter: str
    help: str
    least: int = 1
    least_growing: int | None = None
    least_s: float = 0.0


@dataclass(frozen=True)
class Table:
    """A named set of fields and how it is shown by default.

    `screen` and `text` name the columns that the TUI and plain text show unasked, sorted by `sort` and
    `text_sort`: a field name, with `-` before it for descending; `default_filter` chooses the rows shown without --all,
    beside those that counted any of what is `watched`.
    `append` marks a table of events: rows are added, never replaced. Counters of a table that `begins_at_zero` count
    from when its source first saw their row: all that a new row counted belongs to the last interval (in other tables
    this holds for rows that carry `BEGAN`). What has left a `cumulative` table stays in its totals, as one row. It has
    rows where one of its lens's `hooks` has a mechanism (empty: the hook with the table's name). Rows of a table that
    `adds_up` are parts of a whole; rows of others overlap, and have no total, but for those that pass the filter
    `whole`. `included_in` names the field that has the key of the row, if any, whose numbers include this row's: beside
    that row, totals leave this one out. `watched` is a sum: screens draw its rate as a bar in each row, and the totals
    of its parts over time. In a table without it, `bar` is the number that screens draw as a bar beside it.
    `uses` are the ids of lenses whose newest snapshots its source is given before it is read, so that it can tell whose
    a row is. `exports` are the formats in which `nettop export` writes it (values of nettop.settings.ExportFormat).
    `metrics` are what `nettop serve` makes of it for Prometheus; None: every number, by the fields that say what a row
    is. `details` are sections of the details of a row: headings, and the fields in the order in which somebody asks for
    them; () is one section, by importance. `troubles` are what headlines warn of, the worst first.
    """

    name: str
    fields: tuple[Field, ...]
    key: str
    screen: tuple[str, ...]
    text: tuple[str, ...]
    sort: str
    text_sort: str
    default_filter: str = ""
    append: bool = False
    begins_at_zero: bool = False
    cumulative: bool = False
    hooks: tuple[str, ...] = ()
    adds_up: bool = True
    whole: str = ""
    included_in: str = ""
    watched: str = ""
    bar: str = ""
    uses: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    metrics: tuple[Metrics, ...] | None = None
    details: tuple[tuple[str, tuple[str, ...]], ...] = ()
    troubles: tuple[Trouble, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        """Every field by its name."""
        return {f.name: f for f in self.fields}

    @cached_property
    def stored(self) -> tuple[Field, ...]:
        """The fields that are stored in rows."""
        return tuple(f for f in self.fields if not f.is_composite)

    def columns_of(self, name: str) -> tuple[str, ...]:
        """Return the stored columns that a field's value is made of."""
        field = self.by_name[name]
        made_of = (*field.parts, field.zone) if field.is_composite else (name,)
        return tuple(
            column
            for part in filter(None, made_of)
            for column in ((part,) if part == name else self.columns_of(part))
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every name for filtering and choosing columns: the fields, then the rates."""
        rates = tuple(f.name + RATE for f in self.fields if f.has_rate)
        return tuple(f.name for f in self.fields) + rates

    @cached_property
    def watched_parts(self) -> tuple[str, ...]:
        """The counters whose totals are watched; none without such."""
        return self.by_name[self.watched].parts if self.watched else ()

    @cached_property
    def sortable(self) -> tuple[str, ...]:
        """Every name for sorting: all but the histograms."""
        unsortable = {f.name for f in self.fields if not f.is_sortable}
        return tuple(name for name in self.names if name not in unsortable)

    def title_of(self, name: str) -> str:
        """The title of a column on the screen."""
        field = self.by_name.get(name)
        if field is not None:
            return f"{field.title} UTC" if field.kind is Kind.TIME else field.title
        field = self.by_name[name.removesuffix(RATE)]
        counted = self.by_name[field.parts[0]] if field.kind is Kind.SUM else field
        return field.rate_title or field.title + ("" if counted.unit == "ns" else "/s")

    @cached_property
    def by_title(self) -> Mapping[str, str]:
        """The name of every column by its title; of those with the same title, of one that the screen shows unasked."""
        by_title: dict[str, str] = {}
        for name in sorted(self.names, key=lambda name: name not in self.screen):
            by_title.setdefault(self.title_of(name), name)
        return by_title | ({BAR_TITLE: self.watched + RATE} if self.watched else {})

    def quantiles_of(self, histogram: str) -> tuple[str, ...]:
        """The names of the quantiles that are made of a histogram."""
        return tuple(f.name for f in self.fields if f.kind is Kind.QUANTILE and histogram in f.parts)

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The row: stored fields, the widest first, so that nothing needs padding between them."""
        return row_dtype(self)


def row_dtype(table: Table, carried: tuple[tuple[str, str], ...] = ()) -> np.dtype[np.void]:
    """The dtype of a table's row, followed by `carried` columns that a probe needs and that are not shown.

    Those stand in the order in which they are given. Each is aligned as a C compiler does it.
    """
    import numpy as np

    columns = [(f.name, np.dtype(f.dtype)) for f in table.stored]
    columns.sort(key=lambda column: -column[1].alignment)
    return np.dtype([*columns, *((name, np.dtype(dtype)) for name, dtype in carried)], align=True)


@dataclass(frozen=True, slots=True)
class Hook:
    """Something that a lens wants of the kernel, whichever mechanism provides it. Without one its `fields` are n/a.

    `requires` names another hook of the lens, without which this one is not available either. `remedy` is what doctor
    advises where the kernel refuses the hook for a reason of its own.
    """

    name: str
    help: str
    fields: tuple[str, ...] = ()
    requires: str = ""
    remedy: str = ""


OWN_NAMESPACE = "own"
"""The name of nettop's own network namespace."""

NETNS = Field(
    "netns", Kind.LABEL, "NETNS", "network namespace, by inode number as lsns shows it", "u4", importance=11
)
NAMESPACE = Field(
    "namespace",
    Kind.TEXT,
    "NAMESPACE",
    "network namespace: own is nettop's; others as ip netns names them, by their container, or by inode number",
    "u4",
    width=12,
    importance=12,
)
"""The fields of every table whose rows belong to a network namespace."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that may be missing from a lens's numbers, counted under this name in a snapshot's `lost`.

    It is `for_lack_of_room` if a table with a bound was full.
    """

    name: str
    help: str
    for_lack_of_room: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """A setting of a lens's source, declared once: commands, live keys, completion and documents all read it here.

    On the command line `ring_size` is `--ring-size`; its source gets the value by `set(name, value)`. The value is an
    int, float or str, like the `default`; with the unit "bytes" sizes such as 64K are accepted. `minimum` and `maximum`
    are inclusive. `tables` are the names of those that it concerns (none: every table of the lens). `check` is given
    the value and the seconds between two readings, and raises UsageError where they do not go together. Commands that
    must not miss events (log, run, doctor) use `log_default`, and those that nobody watches (serve, log, doctor) the
    `unattended_default`, where there is one. On the lens's screens the `key` (as
    Textual names it) goes through the `steps`, which are all values of a word: its source then has to accept a change
    after its start. A `repeatable` one is a text whose values are joined by commas; `short` is its one-letter flag.
    `opens` names the table that it is about, which is shown where the option is given, or its key
    pressed, with another one.
    """

    name: str
    help: str
    default: int | float | str
    metavar: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    tables: tuple[str, ...] = ()
    check: Callable[[Any, float], None] | None = None
    log_default: int | float | str | None = None
    unattended_default: int | float | str | None = None
    key: str = ""
    steps: tuple[int | float | str, ...] = ()
    opens: str = ""
    short: str = ""
    repeatable: bool = False

    def default_of(self, *, log: bool = False, unattended: bool = False) -> float | str:
        """Return the value that it has unasked in such commands."""
        for applies, default in ((log, self.log_default), (log or unattended, self.unattended_default)):
            if applies and default is not None:
                return default
        return self.default

    @property
    def flag(self) -> str:
        """How it is written on the command line."""
        return "--" + self.name.replace("_", "-")

    def concerns(self, table: Table) -> bool:
        """Whether it changes anything for a table of its lens."""
        return not self.tables or table.name in self.tables

    def text(self, value: float | str | None) -> str:
        """A value as it is written on the command line: sizes as 64K."""
        if self.unit == "bytes" and isinstance(value, int):
            power = next((p for p in (3, 2, 1) if value and value % (1 << 10 * p) == 0), 0)
            return f"{value >> 10 * power}{' KMG'[power].strip()}"
        return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Lens:
    """A question that nettop answers: its id is the same in file names, --view, paths and recordings.

    `hooks` are what it wants of the kernel, `losses` what it may lose, `options` what a user can change about it; their
    names differ from those of every other lens's. `counts` are those facts about the whole, among the counts of its
    snapshots, that metrics have too: counters and gauges. `common` are groups of fields by which a row of one table
    finds one of another that is about the same: by the first group that both tables have.
    """

    id: str
    title: str
    order: int
    digit: str
    question: str
    tables: tuple[Table, ...]
    hooks: tuple[Hook, ...] = ()
    losses: tuple[Loss, ...] = ()
    options: tuple[Option, ...] = ()
    counts: tuple[Field, ...] = ()
    common: tuple[tuple[str, ...], ...] = ()

    @property
    def main(self) -> Table:
        """The table that `--view ID` shows."""
        return self.tables[0]

    def table(self, name: str) -> Table | None:
        """The table called `name`, or None."""
        return next((t for t in self.tables if t.name == name), None)
