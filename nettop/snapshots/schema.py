# SPDX-License-Identifier: Apache-2.0
"""The classes that declare a lens: Field, Table, Hook, Option, Lens. Imports numpy only to build a dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from nettop.snapshots.histograms import Buckets

if TYPE_CHECKING:
    import numpy as np

V = TypeVar("V", bound=int | float | str)


class Kind(Enum):
    """The kind of a field, from which every frontend derives its behaviour."""

    __hash__ = object.__hash__
    """That of Enum is slow Python code, and columns look up their kind all the time."""

    KEY = "key"
    """The row's id: a number below 2⁵³ (see row_ids), which JSON readers preserve exactly."""
    LABEL = "label"
    """A number that names something (a port, a PID): never summed, never a rate."""
    TEXT = "text"
    """An index into the table of distinct texts stored with the rows."""
    ADDRESS = "address"
    """16 bytes in network order, IPv4 as ::ffff:a.b.c.d; two big-endian u64 halves."""
    GAUGE = "gauge"
    """A measured value that goes up and down."""
    COUNTER = "counter"
    """A total since the row first appeared; `NAME_per_s` is its rate."""
    TIME = "time"
    """Nanoseconds of wall clock since 1970, UTC."""
    ENUM = "enum"
    """One of `labels`."""
    HISTOGRAM = "histogram"
    """Counts per bucket (`buckets`) since the row first appeared; the unit is that of the counted values."""
    QUANTILE = "quantile"
    """Composite: a quantile of a histogram, either cumulative or per interval."""
    ENDPOINT = "endpoint"
    """Composite of an address and a port."""
    RATIO = "ratio"
    """Composite: the first part divided by the second, either cumulative or per interval."""
    SUM = "sum"
    """Composite of counters: the sum of its known parts; `NAME_per_s` is its rate."""
    GROUP = "group"
    """Composite that shows its parts side by side in one column of a screen."""


class FieldRole(Enum):
    """What a text or an id says about the host; what stands for it in a redacted recording follows from that."""

    NAME = "name"
    """A name given on this host: the default of texts."""
    PROCESS = "process"
    CONTAINER = "container"
    CGROUP = "cgroup"
    """The path of a control group."""
    NAMESPACE = "namespace"
    INTERFACE = "interface"
    SERVICE = "service"
    PLACE = "place"
    """An address, a network, an endpoint or a name."""
    RULESET = "ruleset"
    """A name in the firewall's rules, or a comment."""
    RESOURCE = "resource"
    """A limited resource, with a destination if it has one."""
    SYMBOLS = "symbols"
    """Functions of the kernel, and their modules."""
    REASON = "reason"
    """The kernel's reason for a drop."""
    TCP_FLAGS = "TCP flags"
    DECLARED = "declared"
    """Words of the kernel or of nettop."""
    PROSE = "prose"
    """Free text."""
    ID = "id"
    """A number made of what the row is about, which could be guessed: the default of ids."""
    NUMBER = "number"
    """An id that is counted, or is the kernel's."""


_ROLES_OF_NAMES = {
    "process": FieldRole.PROCESS, "container": FieldRole.CONTAINER, "cgroup": FieldRole.CGROUP,
    "namespace": FieldRole.NAMESPACE,
    "interface": FieldRole.INTERFACE, "device": FieldRole.INTERFACE,
}  # fmt: skip
"""The usual roles of texts."""

_DTYPES = {
    Kind.KEY: "u8", Kind.LABEL: "u4", Kind.TEXT: "u4", Kind.ADDRESS: "(2,)>u8", Kind.GAUGE: "u8", Kind.COUNTER: "u8",
    Kind.TIME: "u8", Kind.ENUM: "u1",
}  # fmt: skip
"""The usual dtype of stored values."""
_UNITS = {Kind.TIME: "ns", Kind.QUANTILE: "ns"}
_WIDTHS = {
    Kind.KEY: 6, Kind.LABEL: 5, Kind.TEXT: 12, Kind.ADDRESS: 22, Kind.GAUGE: 7, Kind.COUNTER: 8, Kind.TIME: 19,
    Kind.ENUM: 1, Kind.HISTOGRAM: 24, Kind.QUANTILE: 9, Kind.ENDPOINT: 22, Kind.RATIO: 7, Kind.SUM: 10, Kind.GROUP: 24,
}  # fmt: skip
_WIDTHS_OF_AMOUNTS = {
    (Kind.COUNTER, "bytes"): 10, (Kind.COUNTER, "packets"): 9, (Kind.COUNTER, "ns"): 9, (Kind.COUNTER, "us"): 9,
    (Kind.GAUGE, "bytes"): 9, (Kind.GAUGE, "bytes/s"): 10, (Kind.GAUGE, "ns"): 9, (Kind.GAUGE, "us"): 9,
    (Kind.GAUGE, "ms"): 9, (Kind.RATIO, "ns"): 9, (Kind.RATIO, "bytes"): 9,
}  # fmt: skip
_WIDTHS_OF_NAMES = {
    "pid": 7, "port": 6, "cpu": 4, "netns": 10, "interface": 10, "process": 16, "container": 20, "cgroup": 24,
}  # fmt: skip
"""Columns and amounts on a screen; more where a title or label is longer."""

BEGAN = "began"
"""An optional column: 1 if the source saw the row begin, so that its counters started at 0."""

COMPOSITES = frozenset({Kind.ENDPOINT, Kind.RATIO, Kind.SUM, Kind.GROUP, Kind.QUANTILE})
RATE = "_per_s"
BAR_TITLE = "RATE"
"""The title of the bar that shows the rate of the watched field."""


@dataclass(frozen=True, slots=True)
class Field:
    """One column, declared once for the screens, plain text, JSON, filters and documentation.

    `unit` is a base unit ("bytes", "packets", "us", "bytes/s", "ns"); `dtype` is the numpy dtype of the stored value.
    Where they or the `width` on screens are not given, they follow from the kind, the unit, the name and the labels.
    An unknown value is stored as the largest of an unsigned dtype, or as NaN. `tone` is the colour on screens ("sent",
    "received" or "warn"; chosen by importance if empty), `rate_title` the title of a counter's rate. A histogram has
    `buckets`; a quantile has `quantile`, the share of values at or below it (1: the maximum). `lens` is the id of
    another lens that supplies the value; it is attached while the column is shown. `zone` is the column with the device
    that scopes a link-local address; an endpoint that `binds` to a device is always shown with it. A ratio that is a
    `share` never exceeds 1, even if its first part counts something that the second does not. A column that `refers` to
    a row has its key. The `role` of a text or an id is what it says about the host. `former` is the name in version
    0.2: filters, options, preferences and recordings may still have it, and the field's metric keeps it.
    """

    name: str
    kind: Kind
    title: str
    help: str
    dtype: str = ""
    unit: str = ""
    width: int = 0
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
    share: bool = False
    refers: bool = False
    former: str = ""
    role: FieldRole | None = None

    def __post_init__(self) -> None:
        """Set what is not given."""
        dtype = self.buckets.dtype if self.buckets else _DTYPES.get(self.kind, "")
        object.__setattr__(self, "dtype", self.dtype or dtype)
        object.__setattr__(self, "unit", self.unit or _UNITS.get(self.kind, ""))
        object.__setattr__(self, "width", self.width or self._usual_width())
        object.__setattr__(self, "role", self.role or self._usual_role())

    def _usual_width(self) -> int:
        of_kind = _WIDTHS_OF_AMOUNTS.get((self.kind, self.unit), _WIDTHS[self.kind])
        usual = _WIDTHS_OF_NAMES.get(self.name, of_kind)
        return max(usual, len(self.title), *map(len, self.labels.values()))

    def _usual_role(self) -> FieldRole | None:
        if self.kind is Kind.TEXT:
            return _ROLES_OF_NAMES.get(self.name, FieldRole.NAME)
        is_id = self.kind is Kind.KEY or (self.kind is Kind.LABEL and self.dtype == "u8")
        return FieldRole.ID if is_id else None

    @property
    def is_composite(self) -> bool:
        """True if the value is not stored but computed from `parts`."""
        return self.kind in COMPOSITES

    @property
    def has_rate(self) -> bool:
        """True if `NAME_per_s` is a column too."""
        return self.kind in (Kind.COUNTER, Kind.SUM)

    @property
    def is_sortable(self) -> bool:
        """True if values can be ordered: a histogram's cannot, its quantiles' can."""
        return self.kind is not Kind.HISTOGRAM


@dataclass(frozen=True, slots=True)
class Spread:
    """Columns of one unit that form one metric, told apart by `label`. `name` is the metric's name, like a field's."""

    name: str
    label: str
    columns: Mapping[str, str]
    help: str


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics made from a table: one series per combination of `labels` values in its rows.

    A label is a field, or one of the GROUPINGS of sockets. `values` are counters, gauges and histograms, summed over
    the rows of a series; for gauges of time the longest counts. `rows` names a gauge for the number of rows, alone
    if the prefix is the same word. Metric
    names begin with `prefix`, by default the view's. If the set has a name (`top`), only the `limit` series with the
    largest first value are listed (--top NAME=N), and one series sums up the rest. Other sets have such a series too,
    for those beyond `limit`. Only rows that match `filter` count. `edges` is the range of a histogram's bucket edges
    that are listed, in the field's unit.
    """

    labels: tuple[str, ...]
    values: tuple[str | Spread, ...] = ()
    rows: str = ""
    prefix: str = ""
    filter: str = ""
    top: str = ""
    limit: int = 1000
    edges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


ALL_EDGES, SUM_ONLY = (0.0, math.inf), (math.inf, math.inf)
"""Ranges of bucket edges: the default, and that of a histogram which is listed by its sum and count alone."""


class Severity(Enum):
    """The weight of a finding."""

    PROBLEM = "problem"
    """Something fails, or is slow, now."""
    WARNING = "warning"
    """It will soon, or does in part."""
    HINT = "hint"
    """It works, but costs more than it needs to."""


class Certainty(Enum):
    """How far the numbers prove what a finding says."""

    CERTAIN = "certain"
    """The numbers say just that."""
    LIKELY = "likely"
    """Another cause would look the same, but is rare."""
    POSSIBLE = "possible"
    """Other causes look the same."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of finding: rows of a table that match `filter`, in the syntax of `--filter`.

    - `says`: the sentence. `{column}` is the value of the rows: a text if they agree, the sum of rates and of what
      waits, the largest of other gauges; `{rows}` is their number. What is between square brackets is left out if one
      of its values is unknown.
    - `help`: what rows of this kind have in common, and what that means.
    - `advice`: what to try.
    - `by`: the columns that tell findings apart. The last ones are ignored if that makes too many findings.
    - `min_rows`: the least rows of a finding, or `min_growing_rows` while their number grows; then only rows count that
      matched in the reading before too.
    - `held`: the gauge that must not have become less since the reading before.
    - `together`: rates and ratios, each with the least that rows with the same values of `by` must have together.
    - `min_interval_s`: shorter intervals are not evaluated.
    - `after_s`: seconds that the rows must have matched before this is a finding, with pauses of up to `pause_s`, in
      which it explains others too.
    - `totals`: a filter that the rows must match as well, by counters since nettop began to count, instead of in the
      last interval.
    - `lasts`: the gauge that says for how long a row has matched already, before nettop saw it.
    - `beside`: a filter; another row with the same values of `by`, or the same row, must match it.
    - `explained_by`: kinds that cause this one; if such a finding is about the same port, process or namespace, this
      one is part of it, and that one as severe and as old as this one if it is less so.
    - `explained_in_process`: kinds that cause this one if they are about the same process, at whatever port it connects
      to, and have begun no later: what it waits for itself.
    - `until_sent`: it drops packets, which are sent again ever more rarely, or leaves them unanswered, so it also
      explains what has sent nothing since it was last seen.
    - `only_explains`: it is no finding by itself, only the cause of others.
    - `proof`: the view that shows more, and its filter, if it is not that of the rows; opening it may attach hooks. In
      the same table, other rows: those with the same values of `by` but for their owner.
    """

    name: str
    filter: str
    says: str
    help: str
    advice: str
    severity: Severity = Severity.PROBLEM
    certainty: Certainty = Certainty.CERTAIN
    by: tuple[str, ...] = ()
    min_rows: int = 1
    min_growing_rows: int | None = None
    held: str = ""
    together: tuple[tuple[str, float], ...] = ()
    min_interval_s: float = 0.0
    after_s: float = 0.0
    pause_s: float = 0.0
    totals: str = ""
    lasts: str = ""
    beside: str = ""
    explained_by: tuple[str, ...] = ()
    explained_in_process: tuple[str, ...] = ()
    until_sent: bool = False
    only_explains: bool = False
    proof: tuple[str, str] = ("", "")


ROWS = "rows"
"""In place of a measure's column: the number of rows."""
PRESENCE = "presence"
"""In place of a measure's column: the share of readings with such a row."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of a table's rows, for each combination of values in the columns `by`, which survive restarts.

    - `column`: a counter or a sum, compared by its growth per second; a quantile, of what was counted in a span; ROWS
      or PRESENCE.
    - `says`: the sentence. `{now}` and `{before}` are the numbers, `{column}` is a value of `by`. What is between
      square brackets is left out if a value in it is unknown. `began` is the sentence if there was nothing before,
      `ended` if there is nothing now; without them, `says`. Without `says`, only these two are changes.
    - `least`: the smallest number that matters, in base units per second: differences far below it are none.
    - `topic`: changes of the same topic and the same values of `by` are one, the greatest.
    - `is_bad`: more of it is worse.
    - `comes_and_goes`: only rows that are not there at all count as nothing, and those that come and go anyway are
      compared with.
    """

    topic: str
    by: tuple[str, ...]
    column: str
    least: float
    says: str = ""
    began: str = ""
    ended: str = ""
    filter: str = ""
    is_bad: bool = False
    comes_and_goes: bool = False


def moved_bytes(topic: str, by: str, least: float) -> tuple[Measure, ...]:
    """Return measures of the bytes that each value of a column sends and receives."""
    return tuple(
        Measure(topic, (by,), f"bytes_{done}", least, f"{{{by}}} {does} {{now}}, {{before}} before")
        for done, does in (("sent", "sends"), ("received", "receives"))
    )


@dataclass(frozen=True)
class Table:
    """A named set of fields with its display defaults.

    - `screen` and `text`: the default columns of the TUI and of plain text, sorted by `sort` and `text_sort` (a field
      name; a leading `-` means descending). The defaults of `text` and `text_sort` are `screen` and `sort`, with
      totals instead of rates and without histograms.
    - `key`: the field that identifies a row.
    - `default_filter`: selects the rows shown without --all, in addition to those with nonzero `watched` counters.
    - `append`: a table of events, whose rows are added and never replaced; views show the newest `kept_rows`.
    - `begins_at_zero`: counters start when the source first sees their row, so everything a new row counted belongs to
      the last interval. In other tables this holds for rows with `BEGAN`.
    - `cumulative`: rows that left the table stay in its totals, as one row.
    - `groupings`: the module with `GROUPERS`, which group rows by names that are no columns, for labels of metrics.
    - `hooks`: the table has rows if one of these hooks has a mechanism; by default the hook with the table's name.
    - `adds_up`: rows are parts of a whole. Otherwise they overlap and have no total, except those that match the filter
      `whole`.
    - `included_in`: the field with the key of the row whose numbers include this row's. If that row is present, totals
      leave this one out.
    - `watched`: a sum. Screens draw its rate as a bar in each row, and the totals of its parts over time. In a table
      without it, screens draw the field `bar` as a bar.
    - `uses`: lenses or tables (LENS.TABLE) whose newest snapshots the source receives before each reading, to find a
      row's owner.
    - `exports`: formats of `nettop export` (values of nettop.settings.ExportFormat).
    - `metrics`: Prometheus metrics of `nettop serve`. None means every number, labelled by the identifying fields.
    - `details`: sections of a row's details, each a heading and its fields, the most wanted first. () means one section
      sorted by importance.
    - `rules`: the kinds of findings that its rows may be, the worst first.
    - `measures`: the numbers that `nettop diff` compares.
    """

    name: str
    fields: tuple[Field, ...]
    screen: tuple[str, ...]
    sort: str
    text: tuple[str, ...] = ()
    text_sort: str = ""
    key: str = "id"
    default_filter: str = ""
    append: bool = False
    kept_rows: int = 10_000
    begins_at_zero: bool = False
    cumulative: bool = False
    groupings: str = ""
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
    rules: tuple[Rule, ...] = ()
    measures: tuple[Measure, ...] = ()

    def __post_init__(self) -> None:
        """Set the defaults of plain text."""
        object.__setattr__(self, "text_sort", self.text_sort or self.sort.removesuffix(RATE))
        object.__setattr__(self, "text", self.text or tuple(self._words()))

    def _words(self) -> Iterator[str]:
        """Yield the columns of `screen` as plain text has them."""
        for name in self.screen:
            total = name if name in self.by_name else name.removesuffix(RATE)
            if self.by_name[total].is_sortable:
                yield total

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        """Every field by its name."""
        return {f.name: f for f in self.fields}

    @cached_property
    def stored(self) -> tuple[Field, ...]:
        """The fields stored in rows."""
        return tuple(f for f in self.fields if not f.is_composite)

    def columns_of(self, name: str) -> tuple[str, ...]:
        """Return the stored columns that a field's value is computed from."""
        field = self.by_name[name]
        made_of = (*field.parts, field.zone) if field.is_composite else (name,)
        return tuple(
            column
            for part in filter(None, made_of)
            for column in ((part,) if part == name else self.columns_of(part))
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every name accepted for filters and columns: the fields, then the rates."""
        rates = tuple(f.name + RATE for f in self.fields if f.has_rate)
        return tuple(f.name for f in self.fields) + rates

    @cached_property
    def former(self) -> Mapping[str, str]:
        """The names of columns by those in version 0.2."""
        renamed = {f.former: f for f in self.fields if f.former}
        rates = {name + RATE: f.name + RATE for name, f in renamed.items() if f.has_rate}
        return {name: f.name for name, f in renamed.items()} | rates

    def current(self, name: str) -> str:
        """Return the name of a column, which may be that in version 0.2."""
        return self.former.get(name, name)

    @cached_property
    def watched_parts(self) -> tuple[str, ...]:
        """The counters that `watched` sums up, if any."""
        return self.by_name[self.watched].parts if self.watched else ()

    @cached_property
    def sortable(self) -> tuple[str, ...]:
        """Every name accepted for sorting: all but the histograms."""
        unsortable = {f.name for f in self.fields if not f.is_sortable}
        return tuple(name for name in self.names if name not in unsortable)

    def title_of(self, name: str) -> str:
        """Return the title of a column on the screen."""
        field = self.by_name.get(name)
        if field is not None:
            return f"{field.title} UTC" if field.kind is Kind.TIME else field.title
        field = self.by_name[name.removesuffix(RATE)]
        counted = self.by_name[field.parts[0]] if field.kind is Kind.SUM else field
        return field.rate_title or field.title + ("" if counted.unit == "ns" else "/s")

    @cached_property
    def by_title(self) -> Mapping[str, str]:
        """The name of every column by its title. Among equal titles, a default column of the screen wins."""
        by_title: dict[str, str] = {}
        for name in sorted(self.names, key=lambda name: name not in self.screen):
            by_title.setdefault(self.title_of(name), name)
        return by_title | ({BAR_TITLE: self.watched + RATE} if self.watched else {})

    def quantiles_of(self, histogram: str) -> tuple[str, ...]:
        """Return the names of a histogram's quantiles."""
        return tuple(f.name for f in self.fields if f.kind is Kind.QUANTILE and histogram in f.parts)

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The dtype of a row: stored fields, the widest first, so that no padding is needed between them."""
        return row_dtype(self)


def row_dtype(table: Table, carried: tuple[tuple[str, str], ...] = ()) -> np.dtype[np.void]:
    """Return the dtype of a table's row, followed by `carried` columns, which only the probe uses.

    These keep their order. Fields are aligned as in C.
    """
    import numpy as np

    columns = [(f.name, np.dtype(f.dtype)) for f in table.stored]
    columns.sort(key=lambda column: -column[1].alignment)
    return np.dtype([*columns, *((name, np.dtype(dtype)) for name, dtype in carried)], align=True)


@dataclass(frozen=True, slots=True)
class Hook:
    """A need of a lens, provided by one of several kernel mechanisms. Without a mechanism its `fields` are n/a.

    `requires` names another hook of the lens that this one depends on. `remedy` is doctor's advice if the kernel
    refuses the hook.
    """

    name: str
    help: str
    fields: tuple[str, ...] = ()
    requires: str = ""
    remedy: str = ""


NO_GROUP = "(none)"
"""The group of rows without a value to group by."""
OWN_NAMESPACE = "own"
"""The name of nettop's own network namespace."""

NETNS = Field(
    "netns", Kind.LABEL, "NETNS", "network namespace, by inode number as lsns shows it", "u4", importance=11
)
NAMESPACE = Field(
    "namespace",
    Kind.TEXT,
    "NAMESPACE",
    "network namespace: own is nettop's; others by their ip netns name, container or inode number",
    "u4",
    width=12,
    importance=12,
)
"""The fields of every table whose rows belong to a network namespace."""


@dataclass(frozen=True, slots=True, eq=False)
class Option(Generic[V]):
    """A setting of a lens's source, declared once for commands, live keys, completion and documentation.

    On the command line `ring_size` is `--ring-size`; the source finds the value under the option itself, in its
    SourceOptions. The value has the type of `default`; with the unit "bytes", sizes such as 64K are accepted. `minimum`
    and `maximum` are inclusive. `tables` names the tables it affects (empty: every table of the lens). `check` gets the
    value and the seconds between two readings, and raises UsageError if they are incompatible. Commands that must not
    miss events (log, run, doctor) use `log_default` if set, unattended ones (serve, log, doctor) `unattended_default`.
    On the lens's screens `key` (Textual's name) cycles through `steps`, which for a word are all its values; the source
    must then accept changes after its start. A `repeatable` option is a text whose values are joined by commas; `short`
    is its one-letter flag. `opens` names the table to show if the option is given, or its key pressed, while another
    table is shown.
    """

    name: str
    help: str
    default: V
    metavar: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    tables: tuple[str, ...] = ()
    check: Callable[[V, float], object] | None = None
    log_default: V | None = None
    unattended_default: V | None = None
    key: str = ""
    steps: tuple[V, ...] = ()
    opens: str = ""
    short: str = ""
    repeatable: bool = False

    def default_of(self, *, log: bool = False, unattended: bool = False) -> V:
        """Return the default value for this kind of command."""
        for applies, default in ((log, self.log_default), (log or unattended, self.unattended_default)):
            if applies and default is not None:
                return default
        return self.default

    def help_with(self, default: float | str) -> str:
        """Return the help with a default, unless that is empty."""
        return f"{self.help} ({self.text(default)})" if default != "" else self.help

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")

    def concerns(self, table: Table) -> bool:
        """Return whether the option affects a table of its lens."""
        return not self.tables or table.name in self.tables

    def text(self, value: float | str | None) -> str:
        """Format a value as on the command line: sizes as 64K."""
        if self.unit == "bytes" and isinstance(value, int):
            power = next((p for p in (3, 2, 1) if value and value % (1 << 10 * p) == 0), 0)
            return f"{value >> 10 * power}{' KMG'[power].strip()}"
        return f"{value:g}" if isinstance(value, float) else str(value)


FORMER_LENSES = {"flows": "collector"}
"""Ids of lenses by those in version 0.2, which --view and recordings may still have."""
FORMER_KINDS = {"slow answers": "slow responses"}
"""Kinds of findings by those in version 0.2, which --ignore and preferences may still have."""
FORMER_UNITS = {"answers": "responses"}
"""Units of fields by those in version 0.2, which recordings may have."""

OptionValues: TypeAlias = Mapping[Option[Any], Any]
"""Values of options that were given or have another default for a command; each has the type of its option."""


@dataclass(frozen=True)
class Lens:
    """A question that nettop answers. Its id is the same in file names, --view and paths.

    `hooks` are its needs from the kernel, `options` its settings; option names are unique across lenses. `losses` are
    the kinds of data that may be missing from its numbers, by the name that counts them in a snapshot's `lost`.
    `counts` are the snapshot counts that are exported as metrics too: counters and gauges. `common` are groups of
    fields that match a row of one table to a row of another; the first group that both tables have is used. `of_hosts`
    is False if it is not about the host that it runs on, so that several hosts have nothing to compare. Redaction keeps
    `names`, which the source writes in place of names, and `vocabulary`: names of the kernel and their descriptions.
    """

    id: str
    title: str
    order: int
    digit: str
    question: str
    tables: tuple[Table, ...]
    hooks: tuple[Hook, ...] = ()
    losses: Mapping[str, str] = field(default_factory=dict)
    options: tuple[Option[Any], ...] = ()
    counts: tuple[Field, ...] = ()
    common: tuple[tuple[str, ...], ...] = ()
    of_hosts: bool = True
    names: frozenset[str] = frozenset()
    vocabulary: tuple[Mapping[Any, str], ...] = ()

    @property
    def main(self) -> Table:
        """The table shown by `--view ID`."""
        return self.tables[0]

    def table(self, name: str) -> Table | None:
        """Return the table called `name`, or None."""
        return next((t for t in self.tables if t.name == name), None)
